import time, httpx, json
from .serving import serving
SMALL = {"text": "one", "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
def padded(size):
    b=json.dumps(SMALL).encode(); return b+b" "*(size-len(b))
def test_it():
    for mb,size in ((64<<20, 16<<20),(64<<20, 32<<20),(64<<20, 50<<20)):
        with serving(max_body=mb) as s:
            for ch in (False, True):
                p=padded(size); parts=[p[i:i+65536] for i in range(0,size,65536)]
                t=time.monotonic()
                a=httpx.post(f"{s.url}/generate", content=iter(parts) if ch else p, timeout=60)
                print(mb,size,ch,a.status_code,time.monotonic()-t)
