"""unpoison: reproducible backdoor attacks and defences for image classifiers.

`unpoison.api` is the door for programs: image sets and models in memory, a function or two per family, without DVC. Its
examples are in `docs/library.md`; the pipeline's stages are thin scripts over the same modules.

| family | package | its table | what a method is |
|---|---|---|---|
| attacks | `unpoison.attacks` | `unpoison.attacks.ATTACKS` | `unpoison.crafting.attack.Attack` |
| detectors | `unpoison.detection` | `unpoison.detection.DETECTORS` | `unpoison.detection.detector.Detector` |
| inspectors of models | `unpoison.inspection` | `unpoison.inspection.INSPECTORS` | `unpoison.inspection.inspector.Inspector` |
| purifiers | `unpoison.purification` | `unpoison.purification.PURIFIERS` | `unpoison.purification.purifier.Purifier` |
| robust training | `unpoison.robust` | `unpoison.robust.ROBUST` | `unpoison.robust.robust.Robust` |
| variations | `unpoison.variations` | `unpoison.variations.VARIATIONS` | `unpoison.variations.variation.Variation` |
| figures | `unpoison.visualisation` | `unpoison.visualisation.FIGURES` | `unpoison.visualisation.figure.Figure` |
| aggregators | `unpoison.federation` | `unpoison.federation.aggregators.AGGREGATORS` | `unpoison.federation.aggregator` |
| networks | `unpoison.models` | `unpoison.models.networks.NETWORKS` | `unpoison.models.classifier.Classifier` |
| recipes | `unpoison.training` | `unpoison.training.recipes.RECIPES` | `unpoison.training.recipe.Recipe` |

What they exchange is in `unpoison.data`: `unpoison.data.imageset.ImageSet`, `unpoison.data.scores.Scores`,
`unpoison.data.verdicts.Verdict`. `unpoison.evaluation` grades, and alone sees the truth, `unpoison.poisoning.truth.Truth`.
"""

__version__ = "0.1.0"
