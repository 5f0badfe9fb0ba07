#!/usr/bin/env bash
# Puts a real VS Code (code-server), a Node that runs it, and playwright-core into a cache folder.
#
#     install.sh [FOLDER]        # default: ~/.cache/dgemma-e2e/vscode
#
# About two minutes and 900 MB the first time, nothing the next. Native modules are compiled, so it
# takes a C++ compiler and some headers; as root on Debian the missing packages are installed.
# Ends with status 3 and one line on stdout if this machine cannot do it.
set -euo pipefail

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/dgemma-e2e/vscode}
node_version=24.21.0 # what code-server asks for, whatever node is on PATH
code_server_version=4.139.1
playwright_version=1.65.1
stamp="$folder/installed-$node_version-$code_server_version-$playwright_version"

cannot() {
    echo "$1"
    exit 3
}

packages_missing() {
    local package
    for package in libkrb5-dev libsecret-1-dev libx11-dev libxkbfile-dev pkg-config g++ make python3; do
        dpkg-query --show --showformat='${Status}\n' "$package" 2>/dev/null |
            grep -q 'install ok installed' || echo "$package"
    done
    command -v chromium >/dev/null || echo chromium
}

install_packages() {
    command -v dpkg-query >/dev/null || return 0 # not Debian: npm will tell what is missing
    local missing
    missing=$(packages_missing)
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || cannot "packages are missing, and only root installs them: ${missing//$'\n'/ }"
    {
        apt-get update -qq || true # an old list may do
        # shellcheck disable=SC2086 # one word a package
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
    } >&2 || cannot "apt-get could not install ${missing//$'\n'/ }"
}

command -v npm >/dev/null || cannot "npm is not installed"
mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9 # another test run may be at it
[ ! -e "$stamp" ] || exit 0
install_packages
command -v chromium >/dev/null || cannot "chromium is not installed"
cd "$folder"
[ -e package.json ] || echo '{"private": true}' >package.json
npm=(npm install --no-audit --no-fund --loglevel=error)
{
    "${npm[@]}" "node@$node_version" "playwright-core@$playwright_version"
    PATH="$folder/node_modules/.bin:$PATH" "${npm[@]}" "code-server@$code_server_version"
} >&2 || cannot "npm could not install code-server $code_server_version; see above"
touch "$stamp"
