"""Runs resample.cu without a GPU: compiled as C++, one thread of the CPU for each thread of a block.

The threads of a block run at the same time and meet at a barrier, as on a GPU; blocks run one after the other.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from geoinfer.images.device import kernel

if TYPE_CHECKING:
    from pathlib import Path

_AROUND = """
#include <algorithm>
#include <barrier>
#include <thread>
#include <vector>
struct Index { unsigned x, y, z; };
static thread_local Index threadIdx, blockIdx;
static std::barrier<> *fence;
#define __device__ static
#define __global__
#define __shared__ static
#define __syncthreads() fence->arrive_and_wait()
%s
extern "C" int size_of_pass() { return sizeof(Pass); }
extern "C" void launch(int rows, const unsigned *grid, const unsigned *block, const Pass *passes)
{
    std::barrier<> all(block[0] * block[1]);
    fence = &all;
    std::vector<std::thread> threads;
    for (unsigned y = 0; y < block[1]; y++)
        for (unsigned x = 0; x < block[0]; x++)
            threads.emplace_back([=, &all] {
                threadIdx = {x, y, 0};
                for (unsigned k = 0; k < grid[2]; k++)
                    for (unsigned j = 0; j < grid[1]; j++)
                        for (unsigned i = 0; i < grid[0]; i++) {
                            blockIdx = {i, j, k};
                            if (rows)
                                along_rows(passes);
                            else
                                along_columns(passes);
                            all.arrive_and_wait();
                        }
            });
    for (std::thread &thread : threads)
        thread.join();
}
"""


_ALONE = """
int main()
{
    // Memory exactly as large as it must be: two passes either way round, of a picture that is wider than a stage.
    const int width = 1200, height = 21, size = 35;
    auto table = [=](int length, std::vector<int> &first, std::vector<int> &count, std::vector<int> &weights) {
        int most = 0;
        for (int i = 0; i < size; i++) {
            first.push_back(std::max(0, i * length / size - 20));
            count.push_back(std::min(length, (i + 1) * length / size + 20) - first[i]);
            most = std::max(most, count[i]);
        }
        weights.assign(most * size, 1);
    };
    std::vector<int> first[2], count[2], weights[2];
    table(width, first[0], count[0], weights[0]);
    table(height, first[1], count[1], weights[1]);
    for (int order = 0; order < 2; order++) {
        std::vector<byte> source(width * height * 3, 7), target(size * size * 3);
        std::vector<byte> between(order ? width * size * 3 : size * height * 3);
        const int pitch = order ? width * 3 : size * 3;
        const Pass rows = {order ? between.data() : source.data(), order ? target.data() : between.data(),
            first[0].data(), count[0].data(), weights[0].data(), width * 3, size * 3, size, order ? size : height,
            order ? 8 : 1, 0};
        const Pass columns = {order ? source.data() : between.data(), order ? between.data() : target.data(),
            first[1].data(), count[1].data(), weights[1].data(), pitch, pitch, size, pitch, order ? 1 : 6, 0};
        const unsigned rows_grid[] = {2, 9, 1}, rows_block[] = {32, 4};
        const unsigned columns_grid[] = {(unsigned)(pitch + 127) / 128, 35, 1}, columns_block[] = {128, 1};
        for (int pass = 0; pass < 2; pass++) {
            if (pass == order)
                launch(1, rows_grid, rows_block, &rows);
            else
                launch(0, columns_grid, columns_block, &columns);
        }
    }
}
"""


class Emulator:
    """The kernels, as functions of addresses in this process."""

    def __init__(self, folder: Path) -> None:
        self.library = ctypes.CDLL(str(_compile(folder, _AROUND % kernel.source(), "-shared", "-fPIC")))

    @property
    def size_of_pass(self) -> int:
        return int(self.library.size_of_pass())

    def __call__(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], passes: int) -> None:
        rows = int(name == kernel.ALONG_ROWS)
        self.library.launch(rows, (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 2)(*block), ctypes.c_void_p(passes))


def program(folder: Path, *options: str) -> Path:
    """The kernels as a program of their own, which runs passes in memory exactly as large as it must be."""
    return _compile(folder, _AROUND % kernel.source() + _ALONE, *options)


def _compile(folder: Path, text: str, *options: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile the kernels with")
    source, made = folder / "emulated.cpp", folder / "emulated"
    source.write_text(text)
    command = [compiler, "-std=c++20", "-O1", "-Wall", "-Werror", "-pthread", *options, "-o", made, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "barrier: No such file" in done.stderr or "unrecognized command" in done.stderr:
        pytest.skip("this g++ is too old for C++20")
    if "cannot find" in done.stderr:
        pytest.skip(f"this g++ lacks a library: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return made
