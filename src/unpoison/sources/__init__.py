"""Sources of images, which only the stage `prepare` uses: folders, archives, published sets, the embedded digits."""
