"""How far will a patient's diabetes have progressed in a year? Ten measurements in, one number out."""

import os
from pathlib import Path

import joblib
import numpy as np
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.schema_decorators import input_schema, output_schema

# Age, sex, body mass index, blood pressure and six blood values, each centred and scaled as in the training data.
PATIENTS = np.array([[0.04, 0.05, 0.06, 0.02, -0.04, -0.03, -0.04, 0.0, 0.02, -0.02]])
PROGRESSION = np.array([150.0])


def init():
    """Runs once in each replica, before its first request."""
    global model
    model = joblib.load(Path(os.environ["AZUREML_MODEL_DIR"]) / "diabetes.pkl")
    print("model loaded:", model)


@input_schema("data", NumpyParameterType(PATIENTS))
@output_schema(NumpyParameterType(PROGRESSION))
def run(data):
    """Answers one request, which may hold many patients."""
    return model.predict(data).round(1).tolist()
