"""Vector code written with operators: LLVM instructions, compiled for the machine it runs on.

What is written is what runs: nothing is reordered or contracted, every fused multiply-add is asked
for, and a sum over lanes is by halving. So the same input gives the same bits in any process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir

binding.initialize_native_target()
binding.initialize_native_asmprinter()

_FEATURES = binding.get_host_cpu_features()
IS_WIDE = bool(_FEATURES.get("avx512f", False))  # 32 registers of 8 numbers
LANES = 8 if IS_WIDE else 4  # numbers in a vector
_F64, _I32, _I64, _POINTER = ir.DoubleType(), ir.IntType(32), ir.IntType(64), ir.PointerType()
_FLOATS, _INTEGERS = ir.VectorType(_F64, LANES), ir.VectorType(_I64, LANES)
# exp(r) = 1 + r + r^2 q(r) for |r| <= log(2)/2: q minimax (Chebyshev) of degree 9, highest power
# first; the relative error of exp is below 2e-17 before rounding.
_EXP = (
    *(2.5100375929185925e-08, 2.762007600563138e-07, 2.7557268480106926e-06),
    *(2.480152132210459e-05, 0.00019841269863040675, 0.001388888891719689),
    *(0.008333333333330065, 0.041666666666624164, 0.16666666666666669, 0.5000000000000001),
)
_SHIFT = 1.5 * 2.0**52  # adding it rounds to a whole number, which is then in the lowest bits
_LOG2_HIGH, _LOG2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_UNDERFLOW = -708.0  # below, exp is 0: it would be denormal


class Integer:
    """A 64-bit integer of the code that is written."""

    def __init__(self, code: Code, value: Any) -> None:
        self.code, self.value = code, value

    def _with(self, other: Integer | int, operation: str) -> Integer:
        other = self.code.integer(other)
        return Integer(self.code, getattr(self.code.builder, operation)(self.value, other.value))

    def __add__(self, other: Integer | int) -> Integer:
        return self._with(other, "add")

    def __sub__(self, other: Integer | int) -> Integer:
        return self._with(other, "sub")

    def __mul__(self, other: Integer | int) -> Integer:
        return self._with(other, "mul")

    def __floordiv__(self, other: Integer | int) -> Integer:
        return self._with(other, "sdiv")

    __radd__, __rmul__ = __add__, __mul__

    def __mod__(self, other: Integer | int) -> Integer:
        return self._with(other, "srem")

    def __lt__(self, other: Integer | int) -> Any:
        return self.code.builder.icmp_signed("<", self.value, self.code.integer(other).value)

    def __gt__(self, other: Integer | int) -> Any:
        return self.code.builder.icmp_signed(">", self.value, self.code.integer(other).value)


class Vector:
    """`LANES` numbers of the code that is written."""

    def __init__(self, code: Code, value: Any) -> None:
        self.code, self.value = code, value

    def _with(self, other: Vector | float, operation: str) -> Vector:
        other = self.code.vector(other)
        return Vector(self.code, getattr(self.code.builder, operation)(self.value, other.value))

    def __add__(self, other: Vector | float) -> Vector:
        return self._with(other, "fadd")

    def __sub__(self, other: Vector | float) -> Vector:
        return self._with(other, "fsub")

    def __mul__(self, other: Vector | float) -> Vector:
        return self._with(other, "fmul")

    def __truediv__(self, other: Vector | float) -> Vector:
        return self._with(other, "fdiv")

    def __gt__(self, other: Vector | float) -> Any:
        return self.code.builder.fcmp_ordered(">", self.value, self.code.vector(other).value)


class Variable:
    """A vector that changes: a sum, say. It is kept in a register."""

    def __init__(self, code: Code, initial: float) -> None:
        self.code = code
        with code.builder.goto_entry_block():
            self.place = code.builder.alloca(_FLOATS)
        self.set(code.vector(initial))

    def get(self) -> Vector:
        """Return the present value."""
        return Vector(self.code, self.code.builder.load(self.place, typ=_FLOATS))

    def set(self, value: Vector) -> None:
        """Change the value."""
        self.code.builder.store(value.value, self.place)


class Counter:
    """An integer that changes. It is kept in a register."""

    def __init__(self, code: Code) -> None:
        self.code = code
        with code.builder.goto_entry_block():
            self.place = code.builder.alloca(_I64)
        self.set(code.integer(0))

    def get(self) -> Integer:
        """Return the present value."""
        return Integer(self.code, self.code.builder.load(self.place, typ=_I64))

    def set(self, value: Integer) -> None:
        """Change the value."""
        self.code.builder.store(value.value, self.place)


class Array:
    """Numbers in memory."""

    def __init__(self, code: Code, pointer: Any) -> None:
        self.code, self.pointer = code, pointer

    def _address(self, index: Integer | int) -> Any:
        value = self.code.integer(index).value
        return self.code.builder.gep(self.pointer, [value], source_etype=_F64)

    def __add__(self, offset: Integer | int) -> Array:
        return Array(self.code, self._address(offset))

    def load(self, index: Integer | int) -> Vector:
        """Return the vector that begins at an index."""
        loaded = self.code.builder.load(self._address(index), typ=_FLOATS, align=8)
        return Vector(self.code, loaded)

    def store(self, index: Integer | int, vector: Vector) -> None:
        """Write a vector from an index on."""
        self.code.builder.store(vector.value, self._address(index), align=8)

    def every(self, index: Integer | int) -> Vector:
        """Return the number at an index in all lanes."""
        return self.code.vector(self._number(index))

    def _number(self, index: Integer | int, kind: Any = _F64) -> Any:
        return self.code.builder.load(self._address(index), typ=kind, align=8)

    def copy(self, index: Integer | int, source: Array, at: Integer | int) -> None:
        """Copy one number from another array."""
        self.code.builder.store(source._number(at), self._address(index), align=8)

    def zero(self, index: Integer | int) -> None:
        """Set one number to zero."""
        self.code.builder.store(ir.Constant(_F64, 0.0), self._address(index), align=8)

    def add_total(self, index: Integer | int, vector: Vector) -> None:
        """Add the sum of the lanes, by halving, to one number."""
        builder, total, n = self.code.builder, vector.value, LANES
        while n > 1:
            n //= 2
            halves = [
                builder.shuffle_vector(total, _undefined(total), _lanes(range(i, i + n)))
                for i in (0, n)
            ]
            total = builder.fadd(*halves)
        total = builder.extract_element(total, ir.Constant(_I32, 0))
        place = self._address(index)
        builder.store(builder.fadd(self._number(index), total), place, align=8)

    def load_strided(self, index: Integer | int, stride: int) -> list[Vector]:
        """Return ``stride`` vectors that take every ``stride``-th number, from 0, 1, ... on."""
        builder = self.code.builder
        kind = ir.VectorType(_F64, LANES * stride)
        whole = builder.load(self._address(index), typ=kind, align=8)
        parts = [
            builder.shuffle_vector(
                whole, _undefined(whole), _lanes(range(f, LANES * stride, stride))
            )
            for f in range(stride)
        ]
        return [Vector(self.code, part) for part in parts]

    def gather(self, index: Integer | int, stride: Integer | int) -> Vector:
        """Return the vector of every ``stride``-th number from an index on."""
        value = ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(LANES):
            number = self._number(self.code.integer(index) + stride * lane)
            value = self.code.builder.insert_element(value, number, _lane(lane))
        return Vector(self.code, value)

    def index(self, index: Integer | int) -> Integer:
        """Return the integer that `set_index` has written."""
        return Integer(self.code, self._number(index, _I64))

    def set_index(self, index: Integer | int, value: Integer) -> None:
        """Keep an integer in the place of a number."""
        self.code.builder.store(value.value, self._address(index), align=8)

    def exceeds(self, index: Integer | int, limit: float) -> Integer:
        """Return 1 if the number at an index is above the limit, else 0."""
        builder = self.code.builder
        above = builder.fcmp_ordered(">", self._number(index), ir.Constant(_F64, limit))
        return Integer(self.code, builder.zext(above, _I64))


class Code:
    """One function that is being written.

    Parameters
    ----------
    name : str
    integers, arrays : sequence of str
        Its arguments, in this order: 64-bit integers, then pointers to numbers, which may not
        overlap.
    """

    def __init__(self, name: str, integers: tuple[str, ...], arrays: tuple[str, ...]) -> None:
        self.name = name
        self.module = ir.Module(name)
        self.module.triple = binding.get_process_triple()
        kinds = [_I64] * len(integers) + [_POINTER] * len(arrays)
        self._function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.builder = ir.IRBuilder(self._function.append_basic_block("entry"))
        values = self._function.args
        for pointer in values[len(integers) :]:
            pointer.add_attribute("noalias")
        self.integers = [Integer(self, v) for v in values[: len(integers)]]
        self.arrays = [Array(self, v) for v in values[len(integers) :]]

    def integer(self, value: Integer | int) -> Integer:
        """Return an integer of this code."""
        return value if isinstance(value, Integer) else Integer(self, ir.Constant(_I64, value))

    def vector(self, value: Any) -> Vector:
        """Return a vector whose lanes are one number."""
        if isinstance(value, Vector):
            return value
        if isinstance(value, int | float):
            return Vector(self, ir.Constant(_FLOATS, [float(value)] * LANES))
        return Vector(self, self._spread(value, _FLOATS))

    def _spread(self, value: Any, kind: Any) -> Any:
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, _lane(0))
        return self.builder.shuffle_vector(first, _undefined(first), _lanes([0] * LANES))

    def variable(self, initial: float = 0.0) -> Variable:
        """Return a vector that changes."""
        return Variable(self, initial)

    def counter(self) -> Counter:
        """Return an integer that changes, 0 at first."""
        return Counter(self)

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Do what is written inside if the condition holds."""
        with self.builder.if_then(condition):
            yield

    @contextmanager
    def either(self, condition: Any) -> Iterator[Any]:
        """Do one of two things, each written inside a context of its own."""
        with self.builder.if_else(condition) as both:
            yield both

    @contextmanager
    def loop(
        self, begin: Integer | int, end: Integer | int, step: int | Integer = 1
    ) -> Iterator[Integer]:
        """Repeat what is written inside."""
        builder = self.builder
        head, body, done = (self._function.append_basic_block(n) for n in ("head", "body", "done"))
        index = Integer(self, None)
        start, before = self.integer(begin), builder.block
        end = self.integer(end)
        builder.branch(head)
        builder.position_at_end(head)
        index.value = builder.phi(_I64)
        index.value.add_incoming(start.value, before)
        builder.cbranch(index < end, body, done)
        builder.position_at_end(body)
        yield index
        following = index + step
        index.value.add_incoming(following.value, builder.block)
        builder.branch(head)
        builder.position_at_end(done)

    def choose(self, condition: Any, yes: Integer | int, no: Integer | int) -> Integer:
        """Return one of two integers."""
        both = self.integer(yes).value, self.integer(no).value
        return Integer(self, self.builder.select(condition, *both))

    def choose_array(self, condition: Any, yes: Array, no: Array) -> Array:
        """Return one of two arrays."""
        return Array(self, self.builder.select(condition, yes.pointer, no.pointer))

    def where(self, condition: Any, yes: Vector | float, no: Vector | float) -> Vector:
        """Return one of two vectors, lane by lane."""
        chosen = self.builder.select(condition, self.vector(yes).value, self.vector(no).value)
        return Vector(self, chosen)

    def maximum(self, a: Vector, b: Vector) -> Vector:
        """Return the larger, lane by lane; b where a is not a number."""
        return self.where(a > b, a, b)

    def is_below(self, begin: Integer, end: Integer) -> Any:
        """Return for every lane whether ``begin`` + lane < ``end``."""
        builder = self.builder
        lanes = ir.Constant(_INTEGERS, list(range(LANES)))
        places = builder.add(self._spread(begin.value, _INTEGERS), lanes)
        return builder.icmp_signed("<", places, self._spread(end.value, _INTEGERS))

    def fma(self, a: Vector | float, b: Vector | float, c: Vector | float) -> Vector:
        """Return a b + c, rounded once."""
        name = f"llvm.fma.v{LANES}f64"
        values = [self.vector(v).value for v in (a, b, c)]
        return Vector(self, self._call(name, _FLOATS, values))

    def _call(self, name: str, kind: Any, values: list[Any]) -> Any:
        found = self.module.globals.get(name)
        if found is None:
            found = ir.Function(self.module, ir.FunctionType(kind, [v.type for v in values]), name)
        return self.builder.call(found, values)

    def _bits(self, vector: Vector) -> Any:
        return self.builder.bitcast(vector.value, _INTEGERS)

    def _from_bits(self, bits: Any) -> Vector:
        return Vector(self, self.builder.bitcast(bits, _FLOATS))

    def exp(self, x: Vector) -> Vector:
        """Return exp(x), x <= 0, to about 1 ulp; exactly 0 below -708."""
        shifted = self.fma(x, 1.4426950408889634, _SHIFT)
        n = shifted - _SHIFT
        r = self.fma(n, -_LOG2_LOW, self.fma(n, -_LOG2_HIGH, x))
        p = self.vector(_EXP[0])
        for coefficient in (*_EXP[1:], 1.0, 1.0):
            p = self.fma(p, r, coefficient)
        power = self.builder.shl(self._bits(shifted), _constant(52))
        value = self._from_bits(self.builder.add(self._bits(p), power))
        return self.where(x > _UNDERFLOW, value, 0.0)

    def log(self, x: Vector) -> Vector:
        """Return log(x), x 0 or normal, to about 1 ulp of the larger of 1 and the result."""
        builder, bits = self.builder, self._bits(x)
        # x = 2^e m with m from sqrt(1/2) to sqrt(2); log m = 2 artanh((m - 1) / (m + 1))
        half = builder.add(bits, _constant(0x3FF0000000000000 - 0x3FE6A09E667F3BCD))
        e = builder.sub(builder.ashr(half, _constant(52)), _constant(1023))
        m = self._from_bits(builder.sub(bits, builder.shl(e, _constant(52))))
        n = Vector(self, builder.sitofp(e, _FLOATS))
        f = (m - 1.0) / (m + 1.0)
        square = f * f
        p = self.vector(2.0 / 21.0)
        for i in range(9, 0, -1):
            p = self.fma(p, square, 2.0 / (2 * i + 1))
        low = self.fma(f * square, p, self.fma(n, _LOG2_LOW, f + f))
        return self.where(x > 0.0, self.fma(n, _LOG2_HIGH, low), -math.inf)

    @contextmanager
    def scratch(self, size: Integer) -> Iterator[Array]:
        """Give memory for ``size`` numbers to what is written inside."""
        builder = self.builder
        owned = self._call("malloc", _POINTER, [((size + 8) * 8).value])
        address = builder.ptrtoint(owned, _I64)
        up = builder.add(address, ir.Constant(_I64, 63))
        aligned = builder.and_(up, ir.Constant(_I64, -64))  # a cache line
        yield Array(self, builder.inttoptr(aligned, _POINTER))
        self._call("free", ir.VoidType(), [owned])

    def call_at(self, table: int, index: Integer, arguments: list[Integer | Array]) -> None:
        """Call the function whose address stands at an index of a table in memory."""
        builder = self.builder
        values = [a.value if isinstance(a, Integer) else a.pointer for a in arguments]
        kind = ir.FunctionType(ir.VoidType(), [v.type for v in values])
        begin = builder.inttoptr(ir.Constant(_I64, table), _POINTER)
        place = builder.gep(begin, [index.value], source_etype=_I64)
        address = builder.load(place, typ=_I64, align=8)
        builder.call(builder.inttoptr(address, kind.as_pointer()), values)

    def compile(self) -> int:
        """Compile the function and return its address. It stays in memory for good."""
        self.builder.ret_void()
        engine = _compiled(self.module)
        _ENGINES.append(engine)
        return int(engine.get_function_address(self.name))


_ENGINES: list[Any] = []  # what compiled code lives in


def _compiled(module: ir.Module) -> Any:
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=_FEATURES.flatten(), opt=2, jit=True
    )
    assembly = binding.parse_assembly(str(module))
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    # Loops and vectors are as written.
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = False
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(assembly, passes)
    engine = binding.create_mcjit_compiler(assembly, machine)
    engine.finalize_object()
    return engine


def _constant(value: int) -> Any:
    return ir.Constant(_INTEGERS, [value] * LANES)


def _lane(index: int) -> Any:
    return ir.Constant(_I32, index)


def _lanes(indices: Any) -> Any:
    values = list(indices)
    return ir.Constant(ir.VectorType(_I32, len(values)), values)


def _undefined(value: Any) -> Any:
    return ir.Constant(value.type, ir.Undefined)
