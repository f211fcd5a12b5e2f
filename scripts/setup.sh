#!/usr/bin/env bash
# Install everything: Python packages into .venv, then a Vulkan driver and the few system libraries the packages need.
# Safe to repeat; a second call takes seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*"; }
stop() { echo "Error: $*" >&2; exit 1; }

# ---- system packages -------------------------------------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" = 0 ]; then env DEBIAN_FRONTEND=noninteractive "$@"
    else sudo env DEBIAN_FRONTEND=noninteractive "$@"; fi
}

# sudo counts where it needs no password or a person is there to type it.
can_be_root() {
    [ "$(id -u)" = 0 ] && return 0
    command -v sudo >/dev/null || return 1
    sudo -n true 2>/dev/null || [ -t 0 ]
}

BACKPORTS_LIST=/etc/apt/sources.list.d/vlapost-backports.list
BACKPORTS_LINE='deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main'

# apt_install [-t RELEASE] PACKAGE...   with the exact commands printed where there are no rights to run them
apt_install() {
    command -v apt-get >/dev/null || stop "this system has no apt-get; install the equivalents of these Debian packages: $*"
    if ! can_be_root; then
        echo "Error: system packages are missing and there is neither root nor sudo. Ask an administrator to run:" >&2
        case " $* " in *bookworm-backports*) echo "    echo '$BACKPORTS_LINE' > $BACKPORTS_LIST" >&2 ;; esac
        echo "    apt-get update && apt-get install -y --no-install-recommends $*" >&2
        exit 1
    fi
    case " $* " in *bookworm-backports*) echo "$BACKPORTS_LINE" | as_root tee "$BACKPORTS_LIST" >/dev/null ;; esac
    say "installing $*"
    local log; log=$(mktemp)
    if ! { as_root apt-get update && as_root apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        stop "apt-get could not install: $* (its last lines are above)"
    fi
    rm -f "$log"
}

# ---- Python packages -------------------------------------------------------------------------------------------------

usable() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
    for name in python3 python3.12 python3.11 python3.10; do
        if command -v "$name" >/dev/null && usable "$name"; then echo "$name"; return; fi
    done
    stop "Python 3.10, 3.11 or 3.12 is needed and none was found (python3 is $(python3 --version 2>&1 || echo missing))."
}

install_packages() {
    if [ .venv/.installed -nt setup.cfg ] && usable .venv/bin/python; then say "Python packages are installed"; return; fi
    if ! usable .venv/bin/python; then
        command -v python3 >/dev/null || apt_install python3 python3-venv
        local python; python=$(find_python)
        "$python" -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    say "installing Python packages (a few minutes, several GB with CUDA)"
    .venv/bin/python -m pip install -qq --disable-pip-version-check -e '.[dev]' \
        || stop "pip could not install the packages (its lines are above)."
}

# ---- shared libraries that cv2 and sapien load from the system -----------------------------------------------------------

install_libraries() {
    if .venv/bin/python -c 'import cv2, sapien, mplib' >/dev/null 2>&1; then say "system libraries are installed"; return; fi
    apt_install libgl1 libegl1 libglib2.0-0 libx11-6 libxext6 libsm6 libice6 libgomp1 libuuid1
    .venv/bin/python -c 'import cv2, sapien, mplib' || stop "cv2, sapien or mplib still cannot be imported (see above)."
}

# ---- Vulkan driver -------------------------------------------------------------------------------------------------------

icd() { compgen -G "/usr/share/vulkan/icd.d/$1" >/dev/null || compgen -G "/etc/vulkan/icd.d/$1" >/dev/null; }

# The same rule as at run time: vlapost/drivers.py.
gpu_driver() {
    [ "$(.venv/bin/python -m vlapost.drivers)" = gpu ] && return 0
    if compgen -G "/dev/nvidia[0-9]*" >/dev/null; then
        say "Vulkan: an NVIDIA GPU is here but not its graphics library libGLX_nvidia.so.0; drawing in software"
    fi
    return 1
}

mesa_version() { dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null | sed 's/^[0-9]*://'; }

# Older Mesa lacks what the simulator asks of a software driver.
mesa_is_new_enough() { [ -n "$1" ] && dpkg --compare-versions "$1" ge 24.3; }

install_vulkan() {
    if [ -n "${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}" ]; then say "Vulkan: the driver that VK_DRIVER_FILES names"; return; fi
    if gpu_driver; then say "Vulkan: a GPU driver is here"; return; fi
    if icd 'lvp*' && mesa_is_new_enough "$(mesa_version)"; then say "Vulkan: software driver, Mesa $(mesa_version)"; return; fi
    if ! command -v dpkg >/dev/null && icd 'lvp*'; then say "Vulkan: software driver, version unknown"; return; fi
    local system=unknown
    if [ -r /etc/os-release ]; then system=$(. /etc/os-release && echo "${ID:-} ${VERSION_ID:-}"); fi
    if [ "$system" = "debian 12" ]; then
        apt_install -t bookworm-backports mesa-vulkan-drivers libvulkan1
    else
        apt_install mesa-vulkan-drivers libvulkan1
    fi
    mesa_is_new_enough "$(mesa_version)" \
        || stop "the software Vulkan driver of $system is Mesa $(mesa_version); the simulator needs Mesa 24.3 or newer."
    say "Vulkan: software driver, Mesa $(mesa_version)"
}

install_packages
install_libraries
touch .venv/.installed  # what needs no drawing works without a driver too, and make setup tries again
install_vulkan
say "done; make doctor checks everything"
