import torch

from lightning_poison_shielding.conjugate import conjugate_gradients


def system(generator, size=12):
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.diag(torch.logspace(0, 3, size, dtype=torch.float64))
    return matrix, torch.randn(size, 2, generator=generator, dtype=torch.float64)


def test_it_solves_a_system(generator):
    matrix, right = system(generator)
    found = conjugate_gradients(lambda x: matrix @ x, right, steps=100, tolerance=1e-10)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right))


def test_a_preconditioner_saves_products(generator):
    matrix, right = system(generator)
    products = []

    def product(values):
        products.append(1)
        return matrix @ values

    plain = conjugate_gradients(product, right, steps=100)
    count = len(products)
    helped = conjugate_gradients(product, right, steps=100, precondition=lambda x: x / matrix.diag()[:, None])
    assert len(products) - count < count
    torch.testing.assert_close(helped, plain, rtol=1e-2, atol=1e-4)


def test_it_stops_where_it_is_told(generator):
    matrix, right = system(generator)
    first = conjugate_gradients(lambda x: matrix @ x, right, steps=1)
    length = right.square().sum() / (right * (matrix @ right)).sum()
    torch.testing.assert_close(first, length * right)


def test_nothing_to_solve():
    assert conjugate_gradients(lambda x: 2 * x, torch.zeros(3), steps=5).tolist() == [0, 0, 0]
