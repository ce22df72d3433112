"""The training of mixer-digits: `python -m models.training.mixer_digits`."""

from models.config import MixerConfig
from models.mixer import Mixer
from models.training import bundle, cards, digits, vision_training
from models.training.vision_training import Schedule

CONFIG = MixerConfig(
    width=96,
    depth=4,
    token_mlp_width=48,
    mlp_width=384,
    image_size=digits.IMAGE_SIZE,
    patch_size=8,
    classes=len(digits.NAMES),
)
CARD = cards.Card(
    name="mixer-digits",
    summary="A small MLP-Mixer that classifies handwritten digits.",
    module="mixer_digits",
    data=cards.DIGITS_DATA,
    use=cards.DIGITS_USE,
)


def main() -> None:
    vision_training.run(Mixer(CONFIG), CARD, bundle.save_mixer, Schedule(steps=600))


if __name__ == "__main__":
    main()
