"""Cost of a model: parameters and operations a token. Pure functions of numbers."""


def flops_per_token(
    matrix_parameters: int, attention_width: int, num_layers: int, length: int
) -> int:
    """FLOPs of one forward pass, a token; a multiply-add counts as two.

    Two for each parameter of a matrix product (embedding look-ups multiply nothing; the unembedding
    does), and for causal attention 2 * 2 * width * mean context in each layer (scores and mix).
    Kaplan et al. 2020, arXiv 2001.08361, table 1, with the mean context of a causal mask. Training
    costs three times as much.

    Args:
        matrix_parameters: entries of all matrices that every token is multiplied with.
        attention_width: heads times head size.
        num_layers: decoder layers.
        length: tokens a sequence.
    """
    return 2 * matrix_parameters + num_layers * 4 * attention_width * (length + 1) // 2
