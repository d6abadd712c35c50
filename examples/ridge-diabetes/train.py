"""Fits the model that this service serves, on the diabetes data that comes with scikit-learn."""

from pathlib import Path

import joblib
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

patients, progression = load_diabetes(return_X_y=True)
train, test, train_y, test_y = train_test_split(patients, progression, test_size=0.2, random_state=30)
model = Ridge(alpha=0.1).fit(train, train_y)

path = Path(__file__).parent / "models" / "diabetes.pkl"
path.parent.mkdir(exist_ok=True)
joblib.dump(model, path)
print(f"{path.name}: R² {model.score(test, test_y):.2f} on {len(test)} patients it has not seen")
