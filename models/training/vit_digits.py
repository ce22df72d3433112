"""The training of vit-digits: `python -m models.training.vit_digits`."""

from models.config import VitConfig
from models.training import bundle, cards, digits, vision_training
from models.training.vision_training import Schedule
from models.vit import Vit

CONFIG = VitConfig(
    width=96, depth=4, heads=3, mlp_width=384, image_size=digits.IMAGE_SIZE, patch_size=8, classes=len(digits.NAMES)
)
CARD = cards.Card(
    name="vit-digits",
    summary="A small ViT that classifies handwritten digits.",
    module="vit_digits",
    data=cards.DIGITS_DATA,
    use=cards.DIGITS_USE,
)


def main() -> None:
    vision_training.run(Vit(CONFIG), CARD, bundle.save_vit, Schedule())


if __name__ == "__main__":
    main()
