"""Dataframes: written by pandas, read by Arrow, stored as Parquet in between.

A task may declare the dataframe type it works with and get just that; or take a
`flyte.io.DataFrame`, which is only a reference until it is opened as the type that suits.
Needs pandas and pyarrow where it runs.

    flyte run --follow examples/dataframes.py main
"""

import flyte
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from flyte.io import DataFrame

env = flyte.TaskEnvironment("dataframes")


@env.task
async def harvest() -> pd.DataFrame:
    """Return a pandas dataframe; it is stored as Parquet."""
    return pd.DataFrame(
        {
            "orchard": ["north", "north", "south", "south", "south"],
            "fruit": ["apple", "pear", "apple", "plum", "pear"],
            "kilos": [120.5, 80.0, 99.5, 40.0, 20.0],
        }
    )


@env.task
async def per_fruit(crop: DataFrame) -> DataFrame:
    """Open the reference as pandas, group it, and return a new reference."""
    frame = await crop.open(pd.DataFrame).all()
    kilos = frame.groupby("fruit", as_index=False)["kilos"].sum().sort_values("fruit")
    return DataFrame.wrap_df(kilos)


@env.task
async def weigh(crop: DataFrame) -> float:
    """Open the same bytes as an Arrow table."""
    table = await crop.open(pa.Table).all()
    return pc.sum(table["kilos"]).as_py()


@env.task
async def main() -> tuple[dict[str, float], float]:
    """Return the harvest per fruit and in total."""
    crop = await harvest()
    reference = DataFrame.wrap_df(crop)
    fruit = await (await per_fruit(reference)).open(pd.DataFrame).all()
    return dict(zip(fruit["fruit"], fruit["kilos"])), await weigh(reference)
