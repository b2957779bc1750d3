# shellcheck shell=sh
# A login by SSH can open windows on the desktop.
if [ -z "${DISPLAY:-}" ] && [ -e /run/desktop/xauthority ]; then
    export DISPLAY=:1 XAUTHORITY=/run/desktop/xauthority
fi
# The container's search path, which /etc/profile has just replaced.
if [ -r /run/desktop-ssh/path ]; then
    IFS= read -r PATH < /run/desktop-ssh/path
    export PATH
fi
