# Read by CMake after each `project()`, by `.cargo/config.toml`. The functions of llama-cpp-2 that call this library
# are not reachable from this program, and the linker removes them (`--gc-sections`, which rustc gives).
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama.cpp: build its library common" FORCE)

# The library `llama` builds graphs and reads files; the kernels that compute are in ggml. Optimised for size it takes
# a fifth less time to compile and has 0.7 MB less. The call waits until the target is there.
if(PROJECT_NAME STREQUAL "llama.cpp" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL target_compile_options llama PRIVATE -Os)
endif()
