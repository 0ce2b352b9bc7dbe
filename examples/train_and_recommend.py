"""From a pandas frame of events to recommendations: python examples/train_and_recommend.py"""

import numpy as np
import pandas as pd

import rec2pm_jax

# One row per purchase: 300 customers, who each prefer five of 100 products.
rng = np.random.default_rng(0)
customers = np.repeat(np.arange(300), 80)
favourites = rng.integers(100, size=(300, 5))
events = pd.DataFrame({"customer": customers, "bought_at": pd.Timestamp("2026-01-01")})
events["product"] = "product " + pd.Series(
    favourites[customers, rng.integers(5, size=len(customers))].astype(str)
)
events["bought_at"] += pd.to_timedelta(events.groupby("customer").cumcount(), unit="D")

columns = {"user_column": "customer", "item_column": "product", "time_column": "bought_at"}
dataset = rec2pm_jax.prepare(events, "runs/example/data", **columns)
changes = {"data.segment": 10, "data.segments": 4, "train.steps": 150, "train.eval_every": 50}
config = rec2pm_jax.load_preset("development", changes)
model = rec2pm_jax.train(config, dataset, "runs/example/model")

metrics = rec2pm_jax.evaluate(model, dataset).metrics
print(f"the next product is among the ten best in {metrics['hr@10']:.0%} of the cases")

bought = events[events["customer"] == 7]["product"]
user = model.user(7)  # with all purchases of the log
for product, _, score in model.recommend(user, k=5, time="2026-03-22"):
    print(f"{score:6.2f}  {product}{'  (bought)' if product in set(bought) else ''}")
