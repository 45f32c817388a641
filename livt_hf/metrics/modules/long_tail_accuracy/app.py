"""The Space of `long_tail_accuracy`: accuracies of pasted lists and class counts."""

import json

import gradio as gr
from long_tail_accuracy import LongTailAccuracy

metric = LongTailAccuracy()


def compute(predictions: str, references: str, class_counts: str) -> dict:
    try:
        return metric.compute(
            predictions=json.loads(predictions),
            references=json.loads(references),
            class_counts=json.loads(class_counts),
        )
    except ValueError as error:  # invalid JSON included
        raise gr.Error(str(error)) from None


demo = gr.Interface(
    compute,
    [
        gr.Textbox(label="predictions (a JSON list)"),
        gr.Textbox(label="references (a JSON list)"),
        gr.Textbox(label="class_counts: training images of each class (a JSON list or object)"),
    ],
    gr.JSON(label="percent"),
    title="Long-tail accuracy",
    examples=[["[0, 1, 1]", "[0, 1, 0]", '{"cat": 150, "lynx": 5}']],
)

if __name__ == "__main__":
    demo.launch()
