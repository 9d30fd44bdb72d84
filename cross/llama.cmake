# Read by CMake after each `project()`, by `.cargo/config.toml`. The functions of llama-cpp-2 that call this library
# are not reachable from this program, and the linker removes them (`--gc-sections`, which rustc gives).
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama.cpp: build its library common" FORCE)

# Messages name the source files of llama.cpp: not by the folder of the machine that built it, so that each machine
# builds the same bytes.
add_compile_options(-ffile-prefix-map=${CMAKE_SOURCE_DIR}=llama.cpp)

# The program states the folder of the variants; the one in which they were built is not for other machines.
function(forget_build_folder)
  foreach(property COMPILE_DEFINITIONS INTERFACE_COMPILE_DEFINITIONS)
    get_target_property(definitions ggml ${property})
    if(definitions)
      list(FILTER definitions EXCLUDE REGEX "^GGML_BACKEND_DIR=")
      set_target_properties(ggml PROPERTIES ${property} "${definitions}")
    endif()
  endforeach()
endfunction()
if(PROJECT_NAME STREQUAL "llama.cpp" AND GGML_BACKEND_DIR)
  cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL forget_build_folder)
endif()

# The library `llama` builds graphs and reads files; the kernels that compute are in ggml. Optimised for size it takes
# a fifth less time to compile and has 0.7 MB less. The call waits until the target is there.
if(PROJECT_NAME STREQUAL "llama.cpp" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL target_compile_options llama PRIVATE -Os)
endif()
