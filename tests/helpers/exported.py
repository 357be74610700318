"""Opens an export as a user of transformers would, and runs it on one padded batch."""

import torch

IDS = torch.tensor([[5, 9, 40, 7, 300, 12, 80], [6, 8, 11, 0, 0, 0, 0]])
MASK = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])


def load(folder, **arguments):
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, trust_remote_code=True, **arguments).eval()


def hidden(model, mask=MASK, **arguments):
    with torch.inference_mode():
        return model(IDS, mask, **arguments).last_hidden_state[MASK.bool()].float().numpy()
