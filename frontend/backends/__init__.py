"""Where programs run. In: operations of one program. Out: its events. `base` is the protocol; an engine of one's own, a
ramet server or SGLang's, any server of OpenAI's chat completions, and a mock that needs no model speak it.
"""
