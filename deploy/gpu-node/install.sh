#!/usr/bin/env bash
# Make a Debian 12 / Ubuntu 22.04 / 24.04 machine ready for containers with NVIDIA GPUs: driver, Docker engine, NVIDIA
# container toolkit. Every step looks first and does only what is missing, so running it again changes nothing.
set -euo pipefail

readonly USAGE='usage: install.sh [--dry-run | --check] [--driver-version BRANCH] [--no-driver]

  --dry-run                print what would be done and change nothing; needs neither root nor a GPU
  --check                  only look; exit 1 with a list of what is missing
  --driver-version BRANCH  NVIDIA driver branch (default 580); given, an installed driver of another branch is replaced
  --no-driver              leave the driver to somebody else (it is still checked)

exit: 0 ready, 1 not ready or failed, 2 wrong use, 3 reboot and run it again'

# Tests point these elsewhere; in use they are the machine itself.
OS_RELEASE=${HELIX_OS_RELEASE:-/etc/os-release}
ROOT=${HELIX_ROOT:-}

DRIVER_BRANCH=580  # the oldest branch that serves CUDA 12 and CUDA 13 wheels
DRIVER_ASKED=no
WITH_DRIVER=yes
MODE=apply
readonly NOFILE=65536  # JetStream keeps files open for every stream and consumer, a runner for every weights shard
readonly TEST_IMAGE=ubuntu:24.04  # nvidia-smi itself is put in by the toolkit
readonly CACHE=/var/cache/helix-gpu-node
readonly DAEMON_JSON=/etc/docker/daemon.json
readonly CONTRIB_LIST=/etc/apt/sources.list.d/helix-contrib.list
readonly DOCKER_KEY=/etc/apt/keyrings/docker.asc
readonly DOCKER_LIST=/etc/apt/sources.list.d/docker.list
readonly TOOLKIT_KEY=/etc/apt/keyrings/nvidia-container-toolkit.asc
readonly TOOLKIT_LIST=/etc/apt/sources.list.d/nvidia-container-toolkit.list
readonly BASE_PACKAGES=(ca-certificates curl jq)
readonly DOCKER_PACKAGES=(docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin)

MISSING=()

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$2" >&2; exit "$1"; }
ok() { say "ok       $*"; }
missing() { say "missing  $*"; MISSING+=("$*"); }

# Do a command, or say it in a form that could be pasted.
run() {
  if [[ $MODE == dry-run ]]; then
    printf 'would run'
    printf ' %q' "$@"
    printf '\n'
  else
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    "$@"
  fi
}

# holds PATH CONTENT: is that what the file says?
holds() { [[ -f $ROOT$1 && $(<"$ROOT$1") == "$2" ]]; }

# put PATH CONTENT: write a file whole, by rename.
put() {
  if [[ $MODE == dry-run ]]; then
    say "would write $1:"
    say "    ${2//$'\n'/$'\n'    }"
    return
  fi
  say "+ write $1"
  mkdir -p "$(dirname "$ROOT$1")"
  printf '%s\n' "$2" >"$ROOT$1.new"
  chmod 0644 "$ROOT$1.new"
  mv "$ROOT$1.new" "$ROOT$1"
}

# download URL PATH: whole or not at all.
download() {
  run mkdir -p "$(dirname "$ROOT$2")"
  run curl -fsSL -o "$ROOT$2.new" "$1"
  run chmod 0644 "$ROOT$2.new"
  run mv "$ROOT$2.new" "$ROOT$2"
}

have() { command -v "$1" >/dev/null 2>&1; }
installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
apt_install() { run env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }

read_arguments() {
  while (($#)); do
    case $1 in
      --dry-run | --check)
        [[ $MODE == apply || $MODE == "${1#--}" ]] || die 2 'choose one of --dry-run and --check'
        MODE=${1#--}
        ;;
      --no-driver) WITH_DRIVER=no ;;
      --driver-version)
        [[ ${2:-} =~ ^[0-9]{3}$ ]] || die 2 '--driver-version needs a branch of three digits, such as 580'
        DRIVER_BRANCH=$2 DRIVER_ASKED=yes
        shift
        ;;
      -h | --help) say "$USAGE"; exit 0 ;;
      *) die 2 "unknown argument '$1' (--help lists them)" ;;
    esac
    shift
  done
  [[ $WITH_DRIVER == yes || $DRIVER_ASKED == no ]] || die 2 'choose one of --driver-version and --no-driver'
}

# Sets DISTRO (Docker's name), CODENAME (of the release), CUDA_REPO (NVIDIA's name).
read_os() {
  [[ -r $OS_RELEASE ]] || die 1 "cannot read $OS_RELEASE"
  local name
  name=$(
    # shellcheck disable=SC1090  # the machine's own os-release
    . "$OS_RELEASE"
    printf '%s %s' "${ID:-unknown}" "${VERSION_ID:-}"
  )
  case $name in
    'debian 12') DISTRO=debian CODENAME=bookworm CUDA_REPO=debian12 ;;
    'ubuntu 22.04') DISTRO=ubuntu CODENAME=jammy CUDA_REPO=ubuntu2204 ;;
    'ubuntu 24.04') DISTRO=ubuntu CODENAME=noble CUDA_REPO=ubuntu2404 ;;
    *) die 1 "unsupported OS '$name': Debian 12, Ubuntu 22.04 and Ubuntu 24.04 are supported" ;;
  esac
  [[ $(uname -m) == x86_64 ]] || die 1 "unsupported machine '$(uname -m)': x86_64 is supported"
  ok "OS $name on x86_64"
}

gpu_on_pci() {
  local device
  for device in "$ROOT"/sys/bus/pci/devices/*; do
    # 0x10de is NVIDIA; class 0x03 is a display or 3D controller, not the card's sound or USB part.
    if [[ -r $device/vendor && $(<"$device/vendor") == 0x10de && $(<"$device/class") == 0x03* ]]; then
      return 0
    fi
  done
  return 1
}

check_pci() {
  if gpu_on_pci; then
    ok 'NVIDIA GPU on PCI'
  elif [[ $MODE == apply ]]; then
    die 1 'no NVIDIA GPU on PCI: nothing to install for (a virtual machine needs one passed through)'
  else
    missing 'an NVIDIA GPU on PCI'
  fi
}

# The running driver's version, or nothing. Without a driver nvidia-smi complains on its standard output.
driver_version() {
  local version
  version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) || return 0
  say "${version%%$'\n'*}"
}

driver_fits() {
  local version
  version=$(driver_version)
  [[ -n $version ]] && [[ $DRIVER_ASKED == no || $version == "$DRIVER_BRANCH".* ]]
}

docker_says() { have docker && docker info --format "$1" 2>/dev/null; }

# What the daemon shall be told, merged into what it is told already. The cgroup driver: with systemd's, any
# `systemctl daemon-reload` (each unattended upgrade does one) takes the GPUs away from running containers: "Failed to
# initialize NVML: Unknown Error". With cgroupfs it does not.
daemon_settings() {
  local now='{}'
  [[ ! -s $ROOT$DAEMON_JSON ]] || now=$(<"$ROOT$DAEMON_JSON")
  jq -S --argjson nofile "$NOFILE" '
    .runtimes.nvidia = {path: "nvidia-container-runtime", args: []}
    | .["exec-opts"] = ([(.["exec-opts"] // [])[] | select(startswith("native.cgroupdriver=") | not)]
                        + ["native.cgroupdriver=cgroupfs"])
    | .["default-ulimits"].nofile = {Name: "nofile", Soft: $nofile, Hard: $nofile}
  ' <<<"$now" || die 1 "$DAEMON_JSON is not valid JSON: repair or remove it"
}

docker_obeys() {
  [[ $(docker_says '{{json .Runtimes}}') == *'"nvidia"'* && $(docker_says '{{.CgroupDriver}}') == cgroupfs ]]
}

# --- the steps: each looks first -----------------------------------------------------------------------------------

install_packages() { # WHAT PACKAGE...: install those that are missing
  local what=$1 package absent=()
  shift
  for package in "$@"; do
    installed "$package" || absent+=("$package")
  done
  if ((${#absent[@]} == 0)); then
    ok "$what"
    return
  fi
  run apt-get update
  apt_install "${absent[@]}"
}

install_driver() {
  if [[ $WITH_DRIVER == no ]]; then
    ok 'driver: left to somebody else (--no-driver)'
    return
  fi
  if driver_fits; then
    ok "driver $(driver_version)"
    return
  fi
  local keyring=cuda-keyring_1.1-1_all.deb
  if ! installed cuda-keyring; then
    download "https://developer.download.nvidia.com/compute/cuda/repos/$CUDA_REPO/x86_64/$keyring" "$CACHE/$keyring"
    run dpkg -i "$ROOT$CACHE/$keyring"
  fi
  # NVIDIA's packages for Debian lean on some of Debian's contrib.
  if [[ $DISTRO == debian ]] && ! grep -rqsE '^(deb |Components:).*\bcontrib\b' "$ROOT/etc/apt/"; then
    put "$CONTRIB_LIST" "deb https://deb.debian.org/debian $CODENAME contrib"
  fi
  # The open kernel modules serve Turing and newer; the pinning package holds the branch through upgrades.
  run apt-get update
  apt_install "linux-headers-$(uname -r)" "nvidia-driver-pinning-$DRIVER_BRANCH"
  apt_install nvidia-open
  if [[ $MODE == apply ]]; then
    modprobe nvidia || true
    driver_fits || die 3 'the driver is installed but not running yet: reboot, then run this again (with Secure Boot, enrol its key first)'
  fi
}

add_repository() { # KEY-FILE KEY-URL LIST-FILE LIST
  [[ -s $ROOT$1 ]] || download "$2" "$1"
  holds "$3" "$4" || put "$3" "$4"
}

install_docker() {
  if [[ -n $(docker_says '{{.ServerVersion}}') ]]; then
    ok "Docker engine $(docker_says '{{.ServerVersion}}')"
    return
  fi
  add_repository "$DOCKER_KEY" "https://download.docker.com/linux/$DISTRO/gpg" \
    "$DOCKER_LIST" "deb [arch=amd64 signed-by=$DOCKER_KEY] https://download.docker.com/linux/$DISTRO $CODENAME stable"
  install_packages 'Docker packages' "${DOCKER_PACKAGES[@]}"
  run systemctl enable --now docker
}

install_toolkit() {
  if installed nvidia-container-toolkit; then
    ok 'NVIDIA container toolkit'
    return
  fi
  # The two $( are apt's own, in the list.
  # shellcheck disable=SC2016
  add_repository "$TOOLKIT_KEY" https://nvidia.github.io/libnvidia-container/gpgkey \
    "$TOOLKIT_LIST" "deb [signed-by=$TOOLKIT_KEY] https://nvidia.github.io/libnvidia-container/stable/deb/"'$(ARCH) /'
  install_packages 'toolkit package' nvidia-container-toolkit
}

configure_docker() {
  if [[ $MODE == dry-run ]] && ! have jq; then
    say "would set in $DAEMON_JSON: the runtime nvidia, native.cgroupdriver=cgroupfs, nofile $NOFILE"
    run systemctl restart docker
    return
  fi
  local settings
  settings=$(daemon_settings)
  if holds "$DAEMON_JSON" "$settings" && docker_obeys; then
    ok "$DAEMON_JSON"
    return
  fi
  holds "$DAEMON_JSON" "$settings" || put "$DAEMON_JSON" "$settings"
  run systemctl restart docker
}

# --- the checks ----------------------------------------------------------------------------------------------------

run_checks() {
  local version limit
  version=$(driver_version)
  if [[ -z $version ]]; then
    missing 'a running NVIDIA driver (nvidia-smi finds none)'
  elif driver_fits; then
    ok "nvidia-smi: driver $version"
  else
    missing "NVIDIA driver branch $DRIVER_BRANCH (running: $version)"
  fi

  if [[ -z $(docker_says '{{.ServerVersion}}') ]]; then
    missing 'a running Docker engine (docker info fails: not installed, not started, or not allowed for this user)'
    return
  fi
  ok "Docker engine $(docker_says '{{.ServerVersion}}')"
  if [[ $(docker_says '{{json .Runtimes}}') == *'"nvidia"'* ]]; then
    ok 'Docker runtime nvidia'
  else
    missing 'the Docker runtime nvidia'
  fi
  if [[ $(docker_says '{{.CgroupDriver}}') == cgroupfs ]]; then
    ok 'Docker cgroup driver cgroupfs'
  else
    missing 'Docker cgroup driver cgroupfs (with systemd, a daemon-reload takes the GPUs from running containers)'
  fi
  if docker run --rm --gpus all "$TEST_IMAGE" nvidia-smi >/dev/null 2>&1; then
    ok 'nvidia-smi inside a container'
  else
    missing "a GPU inside a container (docker run --rm --gpus all $TEST_IMAGE nvidia-smi fails)"
  fi
  limit=$(docker run --rm "$TEST_IMAGE" sh -c 'ulimit -n' 2>/dev/null || echo 0)
  if [[ $limit == unlimited ]] || ((limit >= NOFILE)); then
    ok "open files in a container: $limit"
  else
    missing "open files in a container: $limit, wanted $NOFILE"
  fi
}

main() {
  read_arguments "$@"
  read_os
  if [[ $MODE == apply && $(id -u) != 0 ]]; then
    die 1 'must be root to install (--dry-run and --check need not be)'
  fi
  check_pci
  if [[ $MODE != check ]]; then
    install_packages 'base packages' "${BASE_PACKAGES[@]}"
    install_driver
    install_docker
    install_toolkit
    configure_docker
  fi
  if [[ $MODE == dry-run ]]; then
    say 'nothing was changed'
    return
  fi
  run_checks
  if ((${#MISSING[@]})); then
    printf 'install.sh: not ready, missing:\n' >&2
    printf '  - %s\n' "${MISSING[@]}" >&2
    exit 1
  fi
  say 'ready'
}

main "$@"
