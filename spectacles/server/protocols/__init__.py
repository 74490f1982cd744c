"""Other ways of asking the server: the requests of clouds and of the Open Inference Protocol, one file each.

`dispatch` names them all. May use the server's other modules, of which none but `middleware` uses these.
"""
