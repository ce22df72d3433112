"""Stand-ins for the CUDA libraries, with which ONNX Runtime places graphs on CUDA where there is no device.

Which provider gets a node, where tensors are copied between devices, and whether a graph may be captured as a CUDA
graph, is decided when a session is made. That takes libraries that load and report one device, and no kernel ever runs.
So: every symbol the CUDA provider is linked against becomes a C function that returns 0 (success), but for the few
whose answer matters.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

# What the provider asks for at start: one device of compute capability 9.0 with 80 GiB, and memory, which malloc gives.
ALLOCATE = "void *malloc(unsigned long); int {name}(void **p, unsigned long n{more}) {{ *p = malloc(n); return 0; }}"
FREE = "void free(void *); int {name}(void *p) {{ free(p); return 0; }}"
COPY = (
    "void *memcpy(void *, const void *, unsigned long);"
    " int {name}(void *t, const void *s, unsigned long n{more}) {{ memcpy(t, s, n); return 0; }}"
)
NUMBER = "int {name}(int *n) {{ *n = {value}; return 0; }}"
HANDLE = "int {name}(void **h{more}) {{ *h = (void *)1; return 0; }}"
TEXT = 'const char *{name}(int e) {{ return "stand-in"; }}'
ANSWERS = {
    "cudaGetDeviceCount": NUMBER.format(name="cudaGetDeviceCount", value=1),
    "cudaGetDevice": NUMBER.format(name="cudaGetDevice", value=0),
    "cudaRuntimeGetVersion": NUMBER.format(name="cudaRuntimeGetVersion", value=13000),
    "cudaDriverGetVersion": NUMBER.format(name="cudaDriverGetVersion", value=13000),
    "cudaMemGetInfo": "int cudaMemGetInfo(unsigned long *f, unsigned long *t) { *f = *t = 80ul << 30; return 0; }",
    "cudaMalloc": ALLOCATE.format(name="cudaMalloc", more=""),
    "cudaMallocHost": ALLOCATE.format(name="cudaMallocHost", more=""),
    "cudaHostAlloc": ALLOCATE.format(name="cudaHostAlloc", more=", unsigned flags"),
    "cudaMemcpy": COPY.format(name="cudaMemcpy", more=", int kind"),
    "cudaMemset": "void *memset(void *, int, unsigned long);"
    " int cudaMemset(void *p, int v, unsigned long n) { memset(p, v, n); return 0; }",
    "cudaMemcpy2D": "void *memcpy(void *, const void *, unsigned long);"
    " int cudaMemcpy2D(char *t, unsigned long tp, const char *s, unsigned long sp, unsigned long w, unsigned long h,"
    " int kind) { while (h--) memcpy(t + h * tp, s + h * sp, w); return 0; }",
    "cudaFree": FREE.format(name="cudaFree"),
    "cudaFreeHost": FREE.format(name="cudaFreeHost"),
    "cudaGetErrorName": TEXT.format(name="cudaGetErrorName"),
    "cudaGetErrorString": TEXT.format(name="cudaGetErrorString"),
    "cudnnGetErrorString": TEXT.format(name="cudnnGetErrorString"),
    "cudaStreamCreateWithFlags": HANDLE.format(name="cudaStreamCreateWithFlags", more=", unsigned flags"),
    "cublasCreate_v2": HANDLE.format(name="cublasCreate_v2", more=""),
    "cudnnCreate": HANDLE.format(name="cudnnCreate", more=""),
    "cudnnGetVersion": "unsigned long cudnnGetVersion() { return 92000; }",
    "cublasLtCreate": HANDLE.format(name="cublasLtCreate", more=""),
    # 75 and 76 are the compute capability; for all others, a number of multiprocessors is a plausible answer
    "cudaDeviceGetAttribute": "int cudaDeviceGetAttribute(int *v, int a, int d)"
    " { *v = a == 75 ? 9 : a == 76 ? 0 : 132; return 0; }",
    # called by server/runtime/cuda.py if the provider fails
    "cuInit": "int cuInit(unsigned flags) { return 0; }",
    "cuDriverGetVersion": NUMBER.format(name="cuDriverGetVersion", value=13000),
    "cuDeviceGetCount": NUMBER.format(name="cuDeviceGetCount", value=1),
    "cuDeviceGet": "int cuDeviceGet(int *d, int n) { *d = n; return 0; }",
    "cuDeviceGetAttribute": "int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; }",
    "cuGetErrorName": 'int cuGetErrorName(int e, const char **t) { *t = "CUDA_ERROR_STAND_IN"; return 0; }',
}
# by server/generation/device_memory.py
CALLED_BY_US = {
    "cudaMemcpy",
    "cudaMemcpy2D",
    "cudaMemset",
    "cudaDeviceSynchronize",
    "cudaSetDevice",
    "cudaGetLastError",
}
CUDNN = "libcudnn.so.9"  # not linked: the provider looks its functions up by name
UNVERSIONED = {"curand": "libcurand.so.10", "cu": "libcuda.so.1"}  # by prefix, the longer first


def missing() -> str | None:
    """Why the stand-ins cannot be built here; None if they can."""
    if absent := [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]:
        return f"{' and '.join(absent)} not installed"
    return None if provider_library().exists() else "onnxruntime has no CUDA provider here (onnxruntime-gpu has)"


def provider_library() -> Path:
    """The library that holds ONNX Runtime's CUDA provider."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"


def build(folder: Path) -> None:
    """Write the stand-ins to `folder`, which must be on the LD_LIBRARY_PATH of a process that uses them."""
    for library, symbols in wanted().items():
        compile_library(folder, library, symbols, ANSWERS)


def build_with(answers: dict[str, str], folder: Path) -> None:
    """Write the stand-ins that contain these functions, with other answers, to precede the usual ones on the path.

    `answers` maps names of functions to their sources, as `ANSWERS` does.
    """
    for library, symbols in wanted().items():
        if symbols & answers.keys():
            compile_library(folder, library, symbols, ANSWERS | answers)


def compile_library(folder: Path, library: str, symbols: set[str], answers: dict[str, str]) -> None:
    source = folder / f"{library}.c"
    source.write_text("\n".join(answers.get(name, f"int {name}() {{ return 0; }}") for name in sorted(symbols)))
    versions = folder / f"{library}.map"
    versions.write_text(f"{library} {{ global: *; }};")
    subprocess.run(
        ["gcc", "-w", "-shared", "-fPIC", "-fno-builtin", "-o", folder / library, source]
        + [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"],
        check=True,
    )


def wanted() -> dict[str, set[str]]:
    """The symbols that the provider needs from CUDA, by library."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", provider_library()], check=True, capture_output=True, text=True
    ).stdout
    symbols: dict[str, set[str]] = defaultdict(set)
    for name, version in re.findall(r"U (\w+)(?:@+(\S+))?", listing):
        if version.startswith(("libcublas", "libcudart")):
            symbols[version].add(name)
        elif not version:
            for prefix, library in UNVERSIONED.items():
                if name.startswith(prefix):
                    symbols[library].add(name)
                    break
    symbols["libcuda.so.1"] |= {name for name in ANSWERS if re.match("cu[A-Z]", name)}
    symbols["libcudart.so.13"] |= CALLED_BY_US
    symbols["libcurand.so.10"].add("curand_stand_in")  # the library is loaded, although no symbol of it is linked
    names = re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider_library().read_bytes())
    symbols[CUDNN] = {name.decode() for name in names}
    return symbols
