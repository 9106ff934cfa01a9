"""The settings of the tiny run that the tests share (fixture ``tiny_run``)."""

SETTINGS = [
    "recipe=data_recipes/embedded.yaml",  # the plain mix: nothing is asked first
    "mix.total=400",
    "training.max_steps=12",
    "training.learning_rate=0.003",  # so few steps have to be large, or nobody sees that it was trained
    "training.eval_steps=4",
    "training.save_steps=4",
    "training.logging_steps=1",
    "evaluation.limit=6",
]
