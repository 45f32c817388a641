"""The Space of `calibration_error`: calibration errors of pasted lists."""

import json

import gradio as gr
from calibration_error import CalibrationError

metric = CalibrationError()


def compute(predictions: str, references: str, confidences: str) -> dict:
    try:
        return metric.compute(
            predictions=json.loads(predictions), references=json.loads(references), confidences=json.loads(confidences)
        )
    except ValueError as error:  # invalid JSON included
        raise gr.Error(str(error)) from None


demo = gr.Interface(
    compute,
    [gr.Textbox(label=f"{name} (a JSON list)") for name in ("predictions", "references", "confidences")],
    gr.JSON(label="percent"),
    title="Calibration error",
    examples=[["[0, 1, 1]", "[0, 1, 0]", "[1.0, 1.0, 0.6]"]],
)

if __name__ == "__main__":
    demo.launch()
