"""The programs that train the models in `models/pretrained` from freely available data, one command for each model.

    python -m models.training.bert_mini        python -m models.training.vit_digits
    python -m models.training.gpt_mini         python -m models.training.mixer_digits

`corpus` collects English technical text and holds some of it out; `digits` does the same with images. `text_training`
and `vision_training` contain the training loops. `bundle` and `cards` write the results. The extra `train` is needed.
"""
