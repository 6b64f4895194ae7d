"""Key-value arithmetic (paper section 4.1) with models small enough to ship: data, training of the models, demo."""
