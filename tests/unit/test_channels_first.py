"""Keras networks written with channels first: the same numbers as Keras, no transposes on the way."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from kerasvae.networks import (
    GroupNorm,
    Refine,
    conv_decoder,
    conv_encoder,
    dense_decoder,
    dense_encoder,
    fit_core,
    linear_start,
)
from kerasvae_export.channels_first import NotKnownError, network_graph

RNG = np.random.default_rng(2)
L = keras.layers


def written(network, people=3):
    """Outputs of Keras and of the graph for the same inputs, and the graph's operators."""
    for weight in network.weights:
        if "unit" not in weight.path and "maps" not in weight.path:
            weight.assign(
                RNG.uniform(0.2, 0.8, weight.shape) * RNG.choice([-1, 1] if "variance" not in weight.path else [1])
            )
    names = [f"x{i}" for i in range(len(network.inputs))]
    graph = network_graph(network, names, "y")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    given = [RNG.standard_normal((people, *x.shape[1:])).astype("f4") for x in network.inputs]
    wanted = network(given if len(given) > 1 else given[0], training=False).numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, dict(zip(names, given, strict=True)))
    return wanted, found, [node.op_type for node in graph.node]


def check(network):
    wanted, found, operators = written(network)
    assert np.ptp(wanted) > 0
    # float32 sums in another order, through normalisations that enlarge what is left of them
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * abs(wanted).max())
    return operators


@pytest.mark.parametrize("condition", [0, 2])
@pytest.mark.parametrize("shape", [(9,), (7, 10), (6, 9, 8)])
def test_convolutional_networks_have_no_transposes(shape, condition):
    assert "Transpose" not in check(conv_encoder(shape, 6, (4, 16), condition_size=condition))
    # that of the one channel of the image, whose halves are put together
    operators = check(conv_decoder(shape, 3, (4, 16), condition_size=condition))
    assert set(operators[operators.index("Transpose") + 1 :]) <= {"Reshape", "Slice", "Identity"}


@pytest.mark.parametrize("refine", [(), (4,), (4, 3)])
def test_a_linear_start_and_what_stands_beside_it(refine):
    images, mask = RNG.standard_normal((20, 9, 8, 7)).astype("f4"), np.zeros((9, 8, 7), bool)
    mask[2:6, 1:5, 2:5] = True
    core = fit_core(images, 3, mask)
    shape = mask.shape
    beside = [(None, None)]
    if not refine:
        beside.append((conv_encoder(shape, 6, (4,)), conv_decoder(shape, 3, (4,))))
        beside.append((dense_encoder(shape, 8), dense_decoder(shape, 3)))
    transposes = []
    for encoder, decoder in beside:
        made = linear_start(encoder, decoder, core, mask, refine=refine)
        transposes += [check(network).count("Transpose") for network in made]
    assert transposes == ([0] * 2 if refine else [0, 0, 0, 1, 0, 0])


def test_channels_that_are_numbers_of_a_voxel_come_last():
    assert check(conv_decoder((6, 5), 3, (4,), channels=2))[-3:] == ["Transpose", "Reshape", "Identity"]


def model_of(*layers, shape=(6, 5, 2)):
    return keras.Sequential([keras.Input(shape), *layers])


MODELS = {
    "strides and an even kernel": lambda: model_of(L.Conv2D(3, (2, 4), strides=(3, 2), padding="same")),
    "no padding, dilated": lambda: model_of(L.Conv2D(3, 2, dilation_rate=2, padding="valid", use_bias=False)),
    "groups": lambda: model_of(L.Conv2D(4, 3, groups=2, padding="same", activation="relu")),
    "an even transposed kernel": lambda: model_of(L.Conv2DTranspose(3, 4, strides=2, padding="same")),
    "a small transposed kernel": lambda: model_of(L.Conv2DTranspose(3, 2, strides=3, padding="same", use_bias=False)),
    "a transposed kernel without strides": lambda: model_of(L.Conv2DTranspose(3, 3, padding="same")),
    "batch normalisation": lambda: model_of(L.BatchNormalization(), L.Conv2D(2, 3), L.BatchNormalization(scale=False)),
    "our group norm": lambda: model_of(L.Conv2D(6, 3), GroupNorm(3, epsilon=0.01), L.Conv2D(2, 3)),
    "instance normalisation": lambda: model_of(L.GroupNormalization(groups=-1, epsilon=0.01, center=False)),
    "flattened and normalised": lambda: model_of(L.Conv2D(3, 3), L.Flatten(), L.BatchNormalization(), L.Dense(4)),
    "flattened and kept": lambda: model_of(L.Conv2D(3, 3), L.Flatten(), L.Activation("tanh")),
    "activations": lambda: model_of(
        L.Dropout(0.5),
        L.Conv2D(3, 3, activation="elu"),
        L.ReLU(),
        L.Conv2D(2, 1),
        L.LeakyReLU(0.2),
        L.Activation("softplus"),
    ),
    "a dense layer's activation before features": lambda: model_of(
        L.Dense(24, activation="relu"), L.Reshape((4, 3, 2)), L.Conv2DTranspose(2, 3, padding="same"), shape=(5,)
    ),
    "cropped": lambda: model_of(L.Conv2D(3, 1), L.Cropping2D(((1, 2), (0, 1)))),
    "features and a vector reshaped": lambda: model_of(L.Conv2D(3, 3), L.Reshape((2, 18)), L.Flatten(), L.Dense(3)),
}


VOLUMES = {
    "odd sizes, stride 2": lambda: model_of(
        L.Conv3D(4, 3, strides=2, padding="same"), L.Conv3D(3, 3), shape=(7, 6, 5, 1)
    ),
    "pairs of slices": lambda: model_of(
        L.Conv3D(4, 3, strides=2, padding="same", activation="relu"),
        L.GroupNormalization(2, epsilon=0.01, center=False),
        L.Conv3D(6, 3, strides=2, padding="same"),
        L.GroupNormalization(3, epsilon=0.01, scale=False),
        L.Flatten(),
        L.Dense(3),
        shape=(8, 6, 5, 1),
    ),
    "dilation, no padding, wide kernels": lambda: model_of(
        L.Conv3D(2, 3, dilation_rate=2),
        L.Conv3D(3, (4, 1, 2), padding="same"),
        L.Conv3D(2, 5, padding="same"),
        shape=(9, 7, 6, 1),
    ),
    "beyond the volume": lambda: model_of(
        L.Conv3D(3, 5, padding="same"), L.Conv3D(2, 3, padding="same"), shape=(1, 4, 2, 1)
    ),
    "batch normalisation and crops": lambda: model_of(
        L.Conv3D(3, 3),
        L.BatchNormalization(),
        L.LeakyReLU(0.1),
        L.Cropping3D(((0, 1), (1, 0), (1, 1))),
        L.Conv3D(2, 2),
        shape=(6, 6, 6, 1),
    ),
    "left as slices": lambda: model_of(L.Conv3D(3, 3), shape=(6, 5, 4, 1)),
    "doubled and narrowed": lambda: model_of(
        L.Conv3DTranspose(4, 3, strides=2, padding="same", activation="elu"),
        L.Cropping3D(((0, 1), (0, 0), (0, 1))),
        L.Activation("tanh"),
        L.Conv3D(1, 3, padding="same", activation="sigmoid"),
        shape=(3, 4, 5, 2),
    ),
    "doubled, cropped before, narrowed": lambda: model_of(
        L.Conv3DTranspose(4, 3, strides=2, padding="same", use_bias=False),
        L.Cropping3D(((1, 0), (0, 0), (0, 1))),
        L.Conv3D(1, 3, padding="same", use_bias=False),
        shape=(3, 4, 5, 2),
    ),
    "doubled, normalised, narrowed": lambda: model_of(
        L.Conv2DTranspose(4, 3, strides=2, padding="same"), L.BatchNormalization(), L.Conv2D(1, 3, padding="same")
    ),
    "doubled, narrowed to two": lambda: model_of(
        L.Conv2DTranspose(4, 3, strides=2, padding="same"), L.Conv2D(2, 3, padding="same")
    ),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_as_slices_and_halves(name):
    check(VOLUMES[name]())


def test_what_is_doubled_and_used_twice():
    vector = keras.Input((3, 4, 2))
    up = L.Conv2DTranspose(3, 3, strides=2, padding="same")(vector)
    narrow = L.Conv2D(1, 3, padding="same")
    check(keras.Model(vector, L.Add()([narrow(up), L.Conv2D(1, 1)(up)])))
    one = L.Conv2DTranspose(1, 3, strides=2, padding="same")(vector)
    again = L.Conv2D(1, 3, padding="same")
    check(keras.Model(vector, again(again(one))))


def test_slices_join():
    image = keras.Input((6, 5, 4, 1))
    a, b = L.Conv3D(4, 3, padding="same")(image), L.Conv3D(4, 1)(image)
    joined = L.Concatenate()([L.Multiply()([a, b]), L.Subtract()([a, b]), L.Add()([a, image])])
    check(keras.Model(image, L.Dense(3)(L.Concatenate()([L.Flatten()(joined), L.Flatten()(image)]))))


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_users_own_networks(name):
    check(MODELS[name]())


def test_branches_join():
    image = keras.Input((6, 5, 2))
    a, b = L.Conv2D(4, 3, padding="same")(image), L.Conv2D(4, 1)(image)
    joined = L.Concatenate()([L.Multiply()([a, b]), L.Subtract()([a, b]), L.Add()([a, b])])
    check(keras.Model(image, L.Dense(3)(L.Concatenate()([L.Flatten()(joined), L.Flatten()(image)]))))


@pytest.mark.parametrize(
    "layer",
    [
        L.Lambda(lambda x: x),
        L.Activation("mish"),
        L.Dense(3),
        L.Conv2D(2, 3, dtype="mixed_float16"),
        L.Conv2DTranspose(2, 3),
    ],
)
def test_what_is_not_known_is_said(layer):
    with pytest.raises(NotKnownError):
        network_graph(model_of(layer), ["x"], "y")


def test_a_refinement_is_written_with_its_maps():
    image = keras.Input((5, 6, 4))
    layer = Refine((5, 6, 4), (3,))
    network = keras.Model(image, layer(image))
    mask = RNG.random((5, 6, 4)) < 0.7
    layer.set_maps(RNG.standard_normal(mask.shape).astype("f4"), RNG.uniform(1, 2, mask.shape).astype("f4"), mask)
    check(network)
