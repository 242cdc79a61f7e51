"""What a cloud machine runs when it boots: a POSIX shell script made from a boot document.

Owns the way from cloud-init user data (or a startup-script) to the running agent: write the document, download the
agent from the daemon, check its digest, run it, power the machine off whatever came of it. Holds no secret; needs
`/bin/sh` and `python3` and works under any user.
"""

import json
from typing import Literal

_SCRIPT = r"""#!/bin/sh
# One boot of a CI runner machine. It holds no secret.
umask 022
export LC_ALL=C
case "${AWS_EC2_METADATA_SERVICE_ENDPOINT:-}${GCE_METADATA_HOST:-}" in
*127.0.0.1* | *localhost* | *::1*) hosted=yes ;; # a process of a host that plays a cloud: its end is the machine's end
*) hosted=no ;;
esac
folder=
finish() {
  trap - EXIT
  [ "$hosted" = no ] || exit 0
  poweroff || sudo -n poweroff || shutdown -h now || sudo -n shutdown -h now
  exit 0
}
trap finish EXIT
trap 'exit 1' HUP INT TERM
base=${TMPDIR:-/tmp}
[ "$hosted" = no ] && [ -w /var/lib ] && base=/var/lib && rm -rf /var/lib/autoscaler-agent.*
@again@folder=$(mktemp -d "$base/autoscaler-agent.XXXXXXXX") || exit 1
cat >"$folder/boot.json" <<'BOOT_DOCUMENT'
@document@
BOOT_DOCUMENT
python3 -I -S - "$folder" <<'FETCH' || exit 1
import hashlib, http.client, json, random, ssl, sys, time, urllib.request
folder = sys.argv[1]
with open(folder + "/boot.json", encoding="utf-8") as file:
    boot = json.load(file)
url = boot["daemon_url"].rstrip("/") + "/agent/v1/agent.pyz"
deadline = time.monotonic() + boot["boot_timeout_s"]
wait_s = 0.5
while True:
    try:
        tls = ssl.create_default_context(cadata=boot.get("ca_pem") or None) if url.startswith("https:") else None
        direct = urllib.request.ProxyHandler({})
        opener = urllib.request.build_opener(direct, urllib.request.HTTPSHandler(context=tls))
        with opener.open(url, timeout=20) as answer:
            agent = answer.read(1 << 23)
        if hashlib.sha256(agent).hexdigest() == boot["agent_sha256"]:
            break
        problem = "its sha256 is not the one in the boot document"
    except (OSError, ValueError, http.client.HTTPException) as error:
        problem = f"{type(error).__name__}: {error}"
    print(f"boot: no agent from {url}: {problem}", file=sys.stderr, flush=True)
    if time.monotonic() + wait_s > deadline:
        sys.exit("boot: boot_timeout_s is over")
    time.sleep(wait_s * (0.5 + random.random() / 2))
    wait_s = min(wait_s * 2, 10)
with open(folder + "/agent.pyz", "wb") as file:
    file.write(agent)
FETCH
python3 -I -S "$folder/agent.pyz" --folder "$folder" --boot "$folder/boot.json" --evidence @evidence@
"""

# cloud-init runs user data once for each instance: a stopped machine that is started again needs a boot script of its
# own. It asks for the instance id, since an image may have been made from a machine that had run it.
_AGAIN = r"""cloud=/var/lib/cloud
if [ "$hosted" = no ] && [ "${1:-}" != again ] && [ -w $cloud/scripts/per-boot ]; then
  cp "$0" $cloud/autoscaler-boot &&
    printf '#!/bin/sh\n[ "$(cat %s/data/instance-id)" = "%s" ] || exit 0\nexec /bin/sh %s/autoscaler-boot again\n' \
      $cloud "$(cat $cloud/data/instance-id)" $cloud >$cloud/scripts/per-boot/autoscaler &&
    chmod 755 $cloud/scripts/per-boot/autoscaler
fi
"""


def boot_script(document: str, *, evidence: Literal["aws", "gce"], batch: str = "") -> str:
    """The script for one boot document (docs/agent-protocol.md); `batch` is added to the document where given.

    AWS runs it once for each instance, so that it installs itself for later boots; GCE runs it at each start.
    """
    parsed = json.loads(document)
    if batch:
        parsed["batch"] = batch
    line = json.dumps(parsed, separators=(",", ":"), sort_keys=True)
    script = _SCRIPT.replace("@again@", _AGAIN if evidence == "aws" else "").replace("@evidence@", evidence)
    return script.replace("@document@", line)  # last: its text may hold anything
