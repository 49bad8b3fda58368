"""A loss of one's own over packed rows: extra tensors lie as the rows do, and it equals the same loss padded."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCAB, tiny_model
from tiny_runs import SIZES, Subject, as_int32, hyper_at, make_records, tiny_engine
from torch import Tensor

from slideformer import TokenChunk
from slideformer.data.batches import Batch, collate, collate_packed
from slideformer.data.examples import Example
from slideformer.models.architecture import Decoder

EXAMPLES = [Example(i, *as_int32(record)) for i, record in enumerate(make_records(6))]
PADDED = collate(EXAMPLES, pad_id=0)
PACKED = collate_packed([EXAMPLES[0:2], EXAMPLES[2:3], EXAMPLES[3:5], EXAMPLES[5:6]], pad_id=0)
TEACHERS = [
    torch.randn(len(example.input_ids), VOCAB, generator=torch.Generator().manual_seed(example.index)).log_softmax(-1)
    for example in EXAMPLES
]


def as_rows(batch: Batch) -> Tensor:
    """The teachers where `batch` has the tokens of their examples: [B, T, vocabulary]."""
    rows = torch.zeros(*batch.input_ids.shape, VOCAB)
    teachers = iter(TEACHERS)
    for row, documents in zip(rows, batch.documents or [(length,) for length in batch.lengths], strict=True):
        used = torch.cat([next(teachers) for _ in documents])
        row[: len(used)] = used
    return rows


def distillation(chunk: TokenChunk) -> Tensor:
    kl = F.kl_div(chunk.logits.log_softmax(-1), chunk.extra["teacher"], reduction="sum", log_target=True)
    return kl / chunk.trained_tokens


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_it_equals_the_loss_of_the_same_documents_one_a_row(family: str):
    model = tiny_model(family)
    results = []
    for packed, batch in ((True, PACKED), (False, PADDED)):
        of = Subject(model, Decoder(model.config, torch.device("cpu"), packed=packed))
        rows, longest = batch.input_ids.shape
        sizes = replace(SIZES, micro_batch_size=2, micro_batches=rows // 2, max_length=longest)
        with tiny_engine(of, sizes) as engine:
            result = engine.train_step(batch, hyper_at(1), loss=distillation, extra={"teacher": as_rows(batch)})
            weights = {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}
            results.append((result.loss, weights))
    (one, ours), (other, theirs) = results
    assert one == pytest.approx(other, rel=1e-6)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-5, msg=name)


def test_extra_tensors_of_padded_rows_are_refused():
    model = tiny_model("llama")
    of = Subject(model, Decoder(model.config, torch.device("cpu"), packed=True))
    with tiny_engine(of, replace(SIZES, max_length=max(PACKED.lengths))) as engine:
        complaint = rf"extra\['teacher'\] is \[6, .*\], expected \[{len(PACKED.lengths)}, {max(PACKED.lengths)}, ...\]"
        with pytest.raises(ValueError, match=complaint):
            engine.train_step(PACKED, hyper_at(1), loss=distillation, extra={"teacher": as_rows(PADDED)})
