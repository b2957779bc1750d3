# shellcheck shell=sh
# A login by SSH can open windows on the desktop.
if [ -z "${DISPLAY:-}" ] && [ -e /run/desktop/xauthority ]; then
    export DISPLAY=:1 XAUTHORITY=/run/desktop/xauthority
fi
