#!/usr/bin/env bash
# Downloads TinyImageNet (237 MB, for non-commercial research), unpacks it and sorts the validation
# images into class folders. What is there already is not done again.
#
#   data/tinyImageNet/tinyimagenet_download.sh [FOLDER]
#
# FOLDER is where tiny-imagenet-200/ goes: $LIPSCHITZ_DATA if set, else the folder of this script;
# train_model.py and main.py look in both.
set -euo pipefail

url=http://cs231n.stanford.edu/tiny-imagenet-200.zip
md5=90528d7ca1a48142e341f4ef8d21d0de
folder=${1:-${LIPSCHITZ_DATA:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}}
images=$folder/tiny-imagenet-200
archive=$folder/tiny-imagenet-200.zip

fail() {
  echo "error: $*" >&2
  exit 2
}

mkdir -p "$folder"

if [[ ! -d $images ]]; then
  if [[ ! -f $archive ]]; then
    echo "downloading $url"
    # A partial download keeps its .part name, so a second run continues it.
    if command -v curl >/dev/null; then
      curl --fail --location --continue-at - --output "$archive.part" "$url"
    elif command -v wget >/dev/null; then
      wget --continue --output-document="$archive.part" "$url"
    else
      fail "neither curl nor wget is installed; download $url to $archive and run this again"
    fi || fail "cannot download $url; put it at $archive by hand and run this again"
    mv "$archive.part" "$archive"
  fi
  if command -v md5sum >/dev/null; then
    md5sum --check --status <<<"$md5  $archive" ||
      fail "$archive is damaged (wrong md5 sum); delete it and run this again"
  fi
  echo "unpacking $archive"
  # Unpacked under another name and then renamed: an interrupted run leaves no half a data set.
  rm -rf "$folder/unpacking"
  python3 -m zipfile -e "$archive" "$folder/unpacking"
  mv "$folder/unpacking/tiny-imagenet-200" "$images"
  rmdir "$folder/unpacking"
fi

annotations=$images/val/val_annotations.txt
[[ -f $annotations ]] || fail "$annotations is missing; delete $images and run this again"
if [[ -d $images/val/images ]]; then
  echo "sorting the validation images"
  cut -f 2 "$annotations" | sort -u | while read -r class; do
    mkdir -p "$images/val/$class"
  done
  # An interrupted run may have moved some images already.
  while IFS=$'\t' read -r image class _; do
    if [[ -f $images/val/images/$image ]]; then
      mv "$images/val/images/$image" "$images/val/$class/"
    fi
  done <"$annotations"
  rmdir "$images/val/images" 2>/dev/null || fail "$images/val/images has images without a class"
fi
echo "TinyImageNet is ready in $images"
