"""Frozen BatchNorm as part of the convolution before it: the convolution with a scaled weight and a bias.

The result is that of convolution, norm and activation up to rounding, and so are all gradients: the scale is applied to
the weight in every forward pass, so the weight remains trainable. Parameters and buffers keep their names.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection
from copy import deepcopy
from typing import Any, TypeVar

import torch.fx
from jaxtyping import Float
from timm.models import get_notrace_functions, get_notrace_modules, resnet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from detrs.backbones.frozen_norm import FrozenBatchNorm
from detrs.backbones.same_convolution import SameConv2d, pad_same
from detrs.ops.convolution import Geometry, Inputs, convolution, reference

logger = logging.getLogger("detrs")

Model = TypeVar("Model", bound=nn.Module)
ACTIVATIONS: dict[type[nn.Module], str] = {nn.Identity: "none", nn.ReLU: "relu", nn.ReLU6: "relu6"}
"""Those that the operator computes."""


def unpadded(x: Float[Tensor, "B C H W"], conv: nn.Conv2d) -> Float[Tensor, "B C H W"]:
    return x


PADDINGS: dict[type[nn.Module], Callable[[Tensor, nn.Conv2d], Tensor]] = {nn.Conv2d: unpadded, SameConv2d: pad_same}
"""The convolutions that can be folded, and their padding beyond that of ``torch.nn.functional.conv2d``."""


class FoldedConv2d(nn.Conv2d):
    """A convolution, the frozen BatchNorm after it, and an activation.

    Args:
        conv: of a type in ``PADDINGS``; its parameters are used.
        norm: not a submodule of this module, but of that which contains both.
        activation: as of ``detrs.ops.convolution``.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm, activation: str) -> None:
        shape: Any = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
        super().__init__(conv.in_channels, conv.out_channels, **shape, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        self.pad = PADDINGS[type(conv)]
        self._norm = (norm,)  # in a tuple: a submodule would be saved twice
        self.activation = activation

    @property
    def norm(self) -> FrozenBatchNorm:
        return self._norm[0]

    def affine(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """The scale of the weight and the bias after it."""
        scale, shift = self.norm.affine()
        return scale, shift if self.bias is None else shift + scale * self.bias

    def forward(
        self, x: Float[Tensor, "B _ _ _"], residual: Float[Tensor, "B C h w"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        scale, shift = self.affine()
        stride, padding, dilation = self.stride, self.padding, self.dilation
        assert not isinstance(padding, str)  # see ``is_foldable``
        geometry = Geometry(stride, padding, dilation, self.groups)
        return convolution(Inputs(self.pad(x, self), self.weight, scale, shift, residual, geometry, self.activation))


class FoldedBatchNorm(FrozenBatchNorm):
    """Holds the buffers of a norm that a ``FoldedConv2d`` applies; computes only the activation of the norm."""

    def __init__(self, norm: FrozenBatchNorm) -> None:
        nn.Module.__init__(self)
        self.eps, self.activation = norm.eps, norm.activation
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.train(norm.training)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.activation(x)


class FusedBatchNorm(FoldedBatchNorm):
    """The same of a norm whose activation the convolution computes, too."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x


class ResidualBlock(nn.Module):
    """A block of timm's ResNets whose norms are folded: its last convolution adds the shortcut.

    Args:
        block: see ``is_residual_block``; its submodules keep their names.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        if not hasattr(self, "downsample"):
            self.downsample = nn.Identity()
        *self._inner, self._last = LAYERS[type(block)]
        last, act = self.get_submodule(f"conv{self._last}"), f"act{self._last}"
        assert isinstance(last, FoldedConv2d)
        last.activation = ACTIVATIONS[type(self.get_submodule(act))]
        self.add_module(act, nn.Identity())
        self.train(block.training)

    def forward(self, x: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B C h w"]:
        y = x
        for index in self._inner:
            y = self.get_submodule(f"conv{index}")(y)
        result: Tensor = self.get_submodule(f"conv{self._last}")(y, self.downsample(x))
        return result


LAYERS: dict[type[nn.Module], tuple[int, ...]] = {resnet.BasicBlock: (1, 2), resnet.Bottleneck: (1, 2, 3)}
"""Numbers in the names of the convolutions, norms and activations of the blocks of timm's ResNets."""


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Tracer(torch.fx.Tracer):
    """Convolutions, norms and activations are single nodes, as are all layers of PyTorch, and the modules and functions
    that timm excludes from tracing.

    Args:
        hooked: modules whose inputs and outputs have another user.
    """

    def __init__(self, hooked: Collection[nn.Module]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.hooked = hooked

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        leaves = nn.Conv2d, FrozenBatchNorm, *get_notrace_modules()
        return isinstance(module, leaves) or super().is_leaf_module(module, name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if m in self.hooked:
            proxies = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.fx.Proxy)]
            self.create_proxy("call_function", tuple, (proxies,), {})
        return output


def graph_of(body: nn.Module, name: str) -> torch.fx.Graph | None:
    """The calls of ``body``, which messages call ``name``; ``None``, with a message, if ``torch.fx`` cannot trace it.

    The causes are Python code that depends on values or sizes of the input, and code for which symbols are of a wrong
    type: any exception.
    """
    # a copy without hooks, since these would store symbols in the model; its tensors are those of the model
    copied = deepcopy(body, {id(tensor): tensor for tensor in (*body.parameters(), *body.buffers())})
    hooked = [module for module in copied.modules() if has_hooks(module)]
    for module in hooked:
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        return _Tracer(hooked).trace(copied)
    except Exception as error:  # of any type: the code of any model runs with symbols instead of tensors
        logger.info(
            "The frozen BatchNorms of '%s' are not merged into its convolutions, which would be faster: torch.fx "
            "cannot trace this model (%s: %.200s).",
            *(name, type(error).__name__, str(error)),
        )
        return None


class _Calls:
    """The calls of the modules in ``body``.

    Args:
        body: the model.
        graph: of ``graph_of``.
    """

    def __init__(self, body: nn.Module, graph: torch.fx.Graph) -> None:
        self.body = body
        self.nodes = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
        self._counts = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")

    def module(self, node: torch.fx.Node) -> nn.Module | None:
        """What ``node`` calls, if it calls a module that is called once and without hooks."""
        if node.op != "call_module" or self._counts[str(node.target)] > 1:
            return None
        module = self.body.get_submodule(str(node.target))
        return None if has_hooks(module) else module

    def only_user(self, node: torch.fx.Node) -> torch.fx.Node | None:
        """The node that uses the result, if there is only one; identities are skipped."""
        if len(node.users) != 1:
            return None
        (user,) = node.users
        return self.only_user(user) if type(self.module(user)) is nn.Identity else user


def fold_norms(body: nn.Module, name: str = "backbone") -> None:
    """Fold every ``FrozenBatchNorm`` in ``body`` whose input is the output of a convolution that nothing else uses.

    Others remain as they are: after a pooling or concatenation, with layers that are called more than once or have
    hooks, within modules that timm excludes from tracing, and in models that ``torch.fx`` cannot trace. An activation
    that alone uses the output of the norm becomes part of the convolution, too, and so does the addition of the
    shortcut in the blocks of a ResNet.

    Args:
        body: the model.
        name: of the model, for messages.
    """
    if not any(isinstance(module, FrozenBatchNorm) for module in body.modules()):
        return
    graph = graph_of(body, name)
    if graph is None:
        return
    calls = _Calls(body, graph)
    for node in list(calls.nodes.values()):
        conv = calls.module(node)
        user = calls.only_user(node)
        norm = None if user is None else calls.module(user)
        if not isinstance(conv, nn.Conv2d) or not is_foldable(conv) or not isinstance(norm, FrozenBatchNorm):
            continue
        assert user is not None
        fold(body, str(node.target), str(user.target))
        after = calls.only_user(user)
        if after is not None and type(calls.module(after)) in ACTIVATIONS:
            absorb(body, str(node.target), str(after.target))
    for path, module in list(body.named_modules()):
        if is_residual_block(module):
            body.set_submodule(path, ResidualBlock(module))


def is_foldable(conv: nn.Conv2d) -> bool:
    """Whether ``FoldedConv2d`` computes this type of convolution."""
    return type(conv) in PADDINGS and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def fold(body: nn.Module, conv_name: str, norm_name: str) -> None:
    """Replace a convolution and the norm after it."""
    conv, norm = body.get_submodule(conv_name), body.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm)
    fused = type(norm.activation) in ACTIVATIONS
    folded = FusedBatchNorm(norm) if fused else FoldedBatchNorm(norm)
    body.set_submodule(conv_name, FoldedConv2d(conv, folded, ACTIVATIONS[type(norm.activation)] if fused else "none"))
    body.set_submodule(norm_name, folded)


def absorb(body: nn.Module, conv_name: str, activation_name: str) -> None:
    """Make the activation after a folded convolution and its norm a part of the convolution, if that has none."""
    conv = body.get_submodule(conv_name)
    assert isinstance(conv, FoldedConv2d)
    if conv.activation == "none" and isinstance(conv.norm.activation, nn.Identity):
        conv.activation = ACTIVATIONS[type(body.get_submodule(activation_name))]
        body.set_submodule(activation_name, nn.Identity())


def is_residual_block(block: nn.Module) -> bool:
    """Whether ``block`` is one of timm's ResNets that consists of folded convolutions and the shortcut alone."""
    if type(block) not in LAYERS or any(has_hooks(module) for module in (block, *block.children())):
        return False
    extras = [getattr(block, name, None) for name in ("drop_block", "aa", "se", "drop_path")]
    if any(extra is not None and type(extra) is not nn.Identity for extra in extras):
        return False
    convs = [block.get_submodule(f"conv{index}") for index in LAYERS[type(block)]]
    last = type(block.get_submodule(f"act{LAYERS[type(block)][-1]}"))
    folded = [conv for conv in convs if isinstance(conv, FoldedConv2d)]
    return (
        len(folded) == len(convs)
        and all(conv.activation != "none" for conv in folded[:-1])
        and folded[-1].activation == "none"
        and isinstance(folded[-1].norm.activation, nn.Identity)
        and last in ACTIVATIONS
    )


class MergedConv2d(nn.Conv2d):
    """A ``FoldedConv2d`` whose weight contains the scale and whose bias is the shift, for exported programs.

    Args:
        conv: is not changed.
    """

    def __init__(self, conv: FoldedConv2d) -> None:
        shape: Any = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
        super().__init__(conv.in_channels, conv.out_channels, **shape, device="meta")
        scale, shift = conv.affine()
        self.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).detach(), conv.weight.requires_grad)
        self.bias = nn.Parameter(shift.detach().clone(), conv.weight.requires_grad)
        self.train(conv.training)
        self._pad, self._activate = conv.pad, reference.ACTIVATIONS[conv.activation]

    def forward(
        self, x: Float[Tensor, "B _ _ _"], residual: Float[Tensor, "B C h w"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        y = super().forward(self._pad(x, self))
        return self._activate(y if residual is None else y + residual)


def merged(model: Model) -> Model:
    """A copy of ``model`` with merged convolutions; ``model`` itself if it has no folded ones."""
    if not any(isinstance(module, FoldedConv2d) for module in model.modules()):
        return model
    copied = deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, FoldedConv2d):
            copied.set_submodule(name, MergedConv2d(module))
    return copied
