"""Is a review a good one? Two models work together: weights of words, and a calibration that makes a probability of their sum."""

import json
import math
import os
import re
from pathlib import Path


def init():
    """Several models lie in AZUREML_MODEL_DIR as <name>/<version>/<what was registered>."""
    global weights, stopwords, calibration
    models = Path(os.environ["AZUREML_MODEL_DIR"])
    lexicon = models / "word-weights" / "1" / "lexicon"  # registered as a folder
    weights = json.loads((lexicon / "weights.json").read_text(encoding="utf-8"))
    stopwords = set((lexicon / "stopwords.txt").read_text(encoding="utf-8").split())
    calibration = json.loads((models / "calibration" / "2" / "calibration.json").read_text(encoding="utf-8"))  # a file


def run(raw_data):
    """Gets the request's body as text; what is returned is sent as JSON."""
    return {"good": [probability(review) for review in json.loads(raw_data)["reviews"]]}


def probability(review):
    words = [word for word in re.findall(r"[a-z]+", review.lower()) if word not in stopwords]
    mean = sum(weights.get(word, 0.0) for word in words) / max(len(words), 1)
    return round(1 / (1 + math.exp(-calibration["slope"] * mean - calibration["intercept"])), 3)
