//! What a failed run was ended by, told by the words of Rust, Metal, candle and MLX.

use std::error::Error as _;

use crate::error::Error;

/// What ended a run, where its last words say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// An allocation failed.
    OutOfMemory,
    /// macOS ended a command that kept the GPU from drawing the screen for too long.
    Watchdog,
    /// The GPU was reset or removed, and what was on it is lost.
    DeviceLost,
}

/// Metal's sentences are those of `NSError` for `MTLCommandBufferError`, followed by IOGPU's name of the cause:
/// `Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)`.
const WORDS: [(Failure, &[&str]); 3] = [
    (
        Failure::OutOfMemory,
        &[
            "Insufficient Memory",
            "kIOGPUCommandBufferCallbackErrorOutOfMemory",
            // candle, where `newBufferWithLength` gives none.
            "Failed to create metal resource: Buffer",
            // MLX.
            "[metal::malloc]",
        ],
    ),
    (
        Failure::Watchdog,
        &[
            "Impacting Interactivity",
            "kIOGPUCommandBufferCallbackErrorImpactingInteractivity",
            "Caused GPU Timeout Error",
            "kIOGPUCommandBufferCallbackErrorTimeout",
        ],
    ),
    (
        Failure::DeviceLost,
        &[
            "kIOGPUCommandBufferCallbackErrorDeviceRemoved",
            "Device removed",
            "device was lost",
            "Caused GPU Hang Error",
            "kIOGPUCommandBufferCallbackErrorHang",
            "Innocent Victim",
            "kIOGPUCommandBufferCallbackErrorInnocentVictim",
            "kIOGPUCommandBufferCallbackErrorSubmissionsIgnored",
        ],
    ),
];

impl Failure {
    /// What a text speaks of.
    pub(crate) fn of(text: &str) -> Option<Self> {
        // Rust's own, which holds a number.
        if text.contains("memory allocation of") && text.contains("failed") {
            return Some(Self::OutOfMemory);
        }
        WORDS.iter().find(|(_, words)| words.iter().any(|word| text.contains(word))).map(|(failure, _)| *failure)
    }

    /// What an error or one of its causes speaks of.
    pub(crate) fn of_error(error: &Error) -> Option<Self> {
        let mut found = Self::of(&error.to_string());
        let mut cause = error.source();
        while let (None, Some(inner)) = (found, cause) {
            found = Self::of(&inner.to_string());
            cause = inner.source();
        }
        found
    }

    /// What happened, as a clause.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::OutOfMemory => "memory ran out",
            Self::Watchdog => "the GPU watchdog of macOS ended a command that took too long",
            Self::DeviceLost => "the GPU was reset or removed",
        }
    }

    /// What helps against it, as an imperative.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::OutOfMemory => {
                "close other programs, or lower `batch_size`, `attention_chunk` or `loss_chunk`; `headroom plan` finds a run that fits"
            }
            Self::Watchdog => {
                "turn the display off during the run, or lower `batch_size`, `attention_chunk` or `loss_chunk`"
            }
            Self::DeviceLost => "resume the run; where it happens again, restart the Mac first",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_sentences_are_recognised() {
        let cases = [
            (Failure::OutOfMemory, "memory allocation of 8589934592 bytes failed"),
            (
                Failure::OutOfMemory,
                "Command buffer had following error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
            ),
            (Failure::OutOfMemory, "Metal error Failed to create metal resource: Buffer"),
            (
                Failure::OutOfMemory,
                "RuntimeError: [metal::malloc] Attempting to allocate 21474836480 bytes which is greater than the maximum \
                 allowed buffer size of 17179869184 bytes.",
            ),
            (
                Failure::Watchdog,
                "[METAL] Command buffer execution failed: Impacting Interactivity \
                 (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
            ),
            (
                Failure::Watchdog,
                "Command buffer had following error: Caused GPU Timeout Error \
                 (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
            ),
            (
                Failure::DeviceLost,
                "Execution of the command buffer was aborted due to an error during execution. Device removed \
                 (0000000a:kIOGPUCommandBufferCallbackErrorDeviceRemoved)",
            ),
            (
                Failure::DeviceLost,
                "Execution of the command buffer was aborted due to an error during execution. Caused GPU Hang Error \
                 (00000003:kIOGPUCommandBufferCallbackErrorHang)",
            ),
            (
                Failure::DeviceLost,
                "Command buffer had following error: Innocent Victim \
                 (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)",
            ),
            (
                Failure::DeviceLost,
                "Ignored (for causing prior/excessive GPU errors) \
                 (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
            ),
            (Failure::DeviceLost, "wgpu error: the device was lost"),
        ];
        for (failure, sentence) in cases {
            assert_eq!(Failure::of(sentence), Some(failure), "{sentence}");
        }
        // Each word counts alone, and occurs in a sentence.
        for (failure, words) in WORDS {
            for word in words {
                assert_eq!(Failure::of(&format!("error: {word}.")), Some(failure));
                assert!(cases.iter().any(|(of, sentence)| *of == failure && sentence.contains(word)), "{word}");
            }
        }
    }

    #[test]
    fn other_sentences_are_not() {
        for sentence in [
            "Failed to create metal resource: CommandQueue",
            "Failed to create metal resource: CommandBuffer",
            "memory allocation of the model took 3 s",
            "the loss of step 7 is NaN",
            "",
        ] {
            assert_eq!(Failure::of(sentence), None, "{sentence}");
        }
    }

    #[test]
    fn an_errors_causes_count() {
        let metal = candle_core::Error::msg("Impacting Interactivity (0000000e:...)");
        assert_eq!(Failure::of_error(&Error::Tensor(metal)), Some(Failure::Watchdog));
        assert_eq!(Failure::of_error(&Error::Tensor(candle_core::Error::msg("shape mismatch"))), None);
    }
}
