"""The catalogue: losses over all items, exact top-k, and the item table spread over devices.

losses.py           logits, and the loss of the next item (with chunked_sums.py)
topk.py             the k best items without holding all logits
sharded_table.py    where a row of the table is when devices share it
row_exchange.py     rows travel to the devices that need them, gradients travel back
sharded_scoring.py  ranks and top-k over a shared table
"""
