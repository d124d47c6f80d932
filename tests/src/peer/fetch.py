"""An HTTP client that knows of no proxy: fetch.py URL [EXIT-CODE]

Prints the page, and exits with EXIT-CODE.
"""

import os
import sys
import urllib.request

proxies = sorted(name for name in os.environ if name.lower().endswith("_proxy"))
if proxies:
    sys.exit(f"there is {' '.join(proxies)} in the environment")
with urllib.request.urlopen(sys.argv[1], timeout=10) as response:
    sys.stdout.write(response.read().decode())
sys.exit(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
