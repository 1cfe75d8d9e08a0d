"""The mixture-of-experts (MoE) layer.

router.py: which experts a token goes to, and its gate weights. experts.py: the experts, stacked. local.py: the layer on
one device. balance.py: the router's statistics and the balance loss. Layers whose experts are spread over ranks are in
engines/deepspeed/ (expert_parallel.py, autoep.py, stock.py); they share the parts defined here.
"""
