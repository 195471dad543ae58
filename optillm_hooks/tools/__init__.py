"""Tools of the operator's servers, for models: what is offered, and the loop that calls them."""
