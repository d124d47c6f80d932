"""An HTTP client that knows of no proxy: fetch.py URL [--exit CODE] [--while-exists FILE]

Prints the page, waits for as long as FILE exists, and exits with CODE.
"""

import argparse
import os
import sys
import time
import urllib.request

arguments = argparse.ArgumentParser()
arguments.add_argument("url")
arguments.add_argument("--exit", type=int, default=0)
arguments.add_argument("--while-exists")
options = arguments.parse_args()

proxies = sorted(name for name in os.environ if name.lower().endswith("_proxy"))
if proxies:
    sys.exit(f"there is {' '.join(proxies)} in the environment")
with urllib.request.urlopen(options.url, timeout=10) as response:
    print(response.read().decode().strip(), flush=True)
while options.while_exists and os.path.exists(options.while_exists):
    time.sleep(0.01)
sys.exit(options.exit)
