//! A Mac kept from sleeping while something is trained.

/// As long as it lives a Mac does not sleep for want of somebody at it. Its display may: with the display off the GPU
/// watchdog is off too. A closed lid still puts a MacBook to sleep. Elsewhere than on a Mac it does nothing.
pub(crate) struct Awake {
    #[cfg(target_os = "macos")]
    activity: objc2::rc::Retained<objc2::runtime::ProtocolObject<dyn objc2_foundation::NSObjectProtocol>>,
}

impl Awake {
    /// Keeps this Mac awake for a reason that `pmset -g assertions` shows.
    #[cfg(target_os = "macos")]
    pub(crate) fn during(reason: &str) -> Self {
        use objc2_foundation::{NSActivityOptions, NSProcessInfo, NSString};

        let (options, reason) = (NSActivityOptions::IdleSystemSleepDisabled, NSString::from_str(reason));
        Self { activity: NSProcessInfo::processInfo().beginActivityWithOptions_reason(options, &reason) }
    }

    /// Does nothing; only Macs are kept awake.
    #[cfg(not(target_os = "macos"))]
    pub(crate) fn during(_: &str) -> Self {
        Self {}
    }
}

#[cfg(target_os = "macos")]
impl Drop for Awake {
    fn drop(&mut self) {
        // SAFETY: it is the object that `beginActivityWithOptions:reason:` gave, and it is ended once.
        unsafe { objc2_foundation::NSProcessInfo::processInfo().endActivity(&self.activity) };
    }
}
