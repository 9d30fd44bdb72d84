# Read by CMake after each `project()`, by `.cargo/config.toml`. The functions of llama-cpp-2 that call this library
# are not reachable from this program, and the linker removes them (`--gc-sections`, which rustc gives).
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama.cpp: build its library common" FORCE)
