#!/bin/sh
# Options and a .conf are for the server, whose name may be left out; any other command is run as it is.
set -eu
umask 0077
case ${1-} in
'' | -* | *.conf) set -- tiercel "$@" ;;
esac
# What prints and ends takes no settings.
if [ "$1" = tiercel ]; then
    case ${2-} in
    --help | -h | --version | -v | --health | --ready | --check | --sample-config | --settings-table | --man-page) ;;
    '' | -?*) # options alone: they add to the image's defaults
        shift
        set -- tiercel /etc/tiercel/tiercel.conf "$@"
        ;;
    esac
fi
exec "$@"
