"""Fine-tune a model on the conversations in chat.jsonl."""

from datasets import load_dataset
from trl import SFTConfig

from slideformer.integrations.trl import SFTTrainer

args = SFTConfig(
    output_dir="runs/chat",
    max_length=1024,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=8,
    learning_rate=1e-5,
    lr_scheduler_type="cosine",
    num_train_epochs=2,
    assistant_only_loss=True,
)
trainer = SFTTrainer(
    model="Qwen/Qwen3-4B",
    args=args,
    train_dataset=load_dataset("json", data_files="chat.jsonl", split="train"),
)
trainer.train()
trainer.save_model("chat-model")
