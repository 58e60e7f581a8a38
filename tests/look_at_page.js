// What is wrong with the page that is shown, by kind, each in words: empty lists where nothing is. Run by test_report_browser.py.
const shownAs = node => {
  const element = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
  return `${element.tagName.toLowerCase()}.${element.className}: ${(node.textContent || "").trim().slice(0, 40)}`;
};
const rgba = text => {
  const [r, g, b, a] = text.match(/[\d.]+/g).map(Number);
  return { rgb: [r, g, b], alpha: a === undefined ? 1 : a };
};
// Relative luminance and contrast as WCAG 2 defines them.
const luminance = rgb => {
  const linear = rgb.map(v => v / 255).map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const backOf = element => {
  for (let at = element; at; at = at.parentElement) {
    const back = rgba(getComputedStyle(at).backgroundColor);
    if (back.alpha === 1) return back.rgb;
    if (back.alpha > 0) throw new Error("a background that lets others through is not known here");
  }
  // The canvas where nothing else is painted.
  return [255, 255, 255];
};
const overlap = (a, b) =>
  Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;

const texts = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  if (walker.currentNode.textContent.trim()) texts.push(walker.currentNode);
}
const elements = [...document.body.querySelectorAll("*")];
const styles = new Map(elements.map(element => [element, getComputedStyle(element)]));
const rects = new Map(elements.map(element => [element, element.getBoundingClientRect()]));
const scrolling = elements.filter(element => ["auto", "scroll"].includes(styles.get(element).overflowX));
const overflowing = scrolling.filter(element => element.scrollWidth > element.clientWidth + 1);
const inBox = element => scrolling.some(box => box !== element && box.contains(element));

const found = { wide: [], overlapping: [], spilling: [], small: [], pale: [], images: [], boxes: [], focus: [], order: [] };

const root = document.documentElement;
if (root.scrollWidth > innerWidth) found.wide.push(`${root.scrollWidth} of ${innerWidth} pixels`);

for (const element of elements) {
  const children = [...element.children].filter(child => {
    const rect = rects.get(child);
    return rect.width > 0 && rect.height > 0 && styles.get(child).display !== "inline";
  });
  children.forEach((one, place) => {
    for (const other of children.slice(place + 1)) {
      if (overlap(rects.get(one), rects.get(other))) found.overlapping.push(`${shownAs(one)} | ${shownAs(other)}`);
    }
  });
}

for (const text of texts) {
  const element = text.parentElement;
  const style = styles.get(element);
  if (parseFloat(style.fontSize) < 12) found.small.push(`${style.fontSize} ${shownAs(text)}`);
  const ratio = contrast(rgba(style.color).rgb, backOf(element));
  if (ratio < 4.5) found.pale.push(`${ratio.toFixed(2)} ${shownAs(text)}`);
  // Within the block it belongs to, and, where no box scrolls, within the screen.
  let block = element;
  while (styles.get(block) && styles.get(block).display === "inline") block = block.parentElement;
  const bounds = block.getBoundingClientRect();
  const range = document.createRange();
  range.selectNodeContents(text);
  const written = range.getBoundingClientRect();
  const beside = written.left < bounds.left - 1 || written.right > bounds.right + 1;
  const above = written.top < bounds.top - 1 || written.bottom > bounds.bottom + 1;
  if (beside || above) found.spilling.push(shownAs(text));
  else if (!inBox(element) && (written.left < 0 || written.right > innerWidth)) found.spilling.push(shownAs(text));
}

const images = [...document.images];
for (const image of images) {
  if (!image.alt.trim()) found.images.push(`no alternative text: ${shownAs(image.parentElement)}`);
  const [own, around] = [rects.get(image), rects.get(image.parentElement)];
  if (!inBox(image) && (own.left < around.left - 1 || own.right > around.right + 1)) found.spilling.push(`image ${image.alt}`);
  if (!image.complete || !image.naturalWidth) found.images.push(`not decoded: ${image.alt}`);
}

const named = element => (element.getAttribute("aria-label") || "").trim();
for (const box of overflowing) {
  if (box.tabIndex !== 0 || box.getAttribute("role") !== "region" || !named(box)) found.boxes.push(shownAs(box));
}
const labels = scrolling.map(named);
const twice = labels.filter((label, place) => labels.indexOf(label) !== place);
twice.forEach(label => found.boxes.push(`two of one name: ${label}`));
// What stays at the left while a table scrolls leaves room for the rest.
for (const cell of elements.filter(element => styles.get(element).position === "sticky")) {
  const box = scrolling.find(other => other.contains(cell));
  const hides = overflowing.includes(box) && rects.get(cell).width > 0.6 * box.clientWidth;
  if (hides) found.boxes.push(`hides the rest: ${shownAs(cell)}`);
}

const interactive = "a[href], button, input, select, textarea, summary, [onclick], [contenteditable], [tabindex]";
for (const element of document.querySelectorAll(interactive)) {
  if (element.tabIndex !== 0) found.focus.push(shownAs(element));
}

const headings = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")];
headings.forEach((heading, place) => {
  const level = Number(heading.tagName[1]);
  const before = place ? Number(headings[place - 1].tagName[1]) : 0;
  if (level > before + 1 || (level === 1) !== (place === 0)) found.order.push(shownAs(heading));
});
for (const cell of document.querySelectorAll("th")) {
  if (!["col", "row"].includes(cell.scope) || !cell.textContent) found.order.push(shownAs(cell));
}
for (const row of document.querySelectorAll("tbody tr")) {
  if (row.cells[0].tagName !== "TH") found.order.push(`no header: ${shownAs(row)}`);
}
for (const cell of document.querySelectorAll("thead td")) {
  if (cell.textContent.trim()) found.order.push(`no header: ${shownAs(cell)}`);
}

window.look = {
  // What has the focus: its name, its outline against what is around it, and how far it is scrolled.
  ofFocus() {
    const element = document.activeElement;
    const style = getComputedStyle(element);
    return {
      label: named(element),
      style: style.outlineStyle,
      width: parseFloat(style.outlineWidth),
      contrast: contrast(rgba(style.outlineColor).rgb, backOf(element.parentElement)),
      scrolled: element.scrollLeft,
    };
  },
};
return {
  ...found,
  lang: root.lang,
  headings: headings.map(heading => heading.tagName),
  labels,
  back: luminance(backOf(document.body)),
  counts: { images: images.length, texts: texts.length, overflowing: overflowing.length },
};
