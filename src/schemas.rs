//! The published schemas, built into the program.

/// A file below `schemas/v1/`, without its `.json`, and its text.
pub type SchemaFile = (&'static str, &'static str);

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/v1/", $name, ".json")))),*]
    };
}

/// The envelope, what the schemas share, the index, and one schema per event type.
pub const FILES: &[SchemaFile] = files![
    "envelope",
    "defs",
    "generic",
    "index",
    "cdhosting/billing.payment.failed",
    "cdhosting/billing.payment.succeeded",
    "cdhosting/billing.subscription.cancelled",
    "cdhosting/server.backup.completed",
    "cdhosting/server.created",
    "cdhosting/server.error",
    "cdhosting/server.rebooted",
    "cdhosting/server.started",
    "cdhosting/server.stopped",
    "cloud66/application.health_check.failed",
    "cloud66/application.integration.configured",
    "cloud66/application.integration.removed",
    "cloud66/application.update.failed",
    "cloud66/application.update.pending",
    "cloud66/application.update.started",
    "cloud66/application.update.succeeded",
    "cloud66/backup.verification.failed",
    "cloud66/managed_backup.fail",
    "cloud66/server.backon",
    "cloud66/server.ip.change.fail",
    "cloud66/server.stopped",
    "cloud66/stack.created",
    "cloud66/stack.deploy.started",
    "cloud66/stack.provision.fail",
    "cloud66/stack.provision.ok",
    "cloud66/stack.redeploy.fail",
    "cloud66/stack.redeploy.hook.fail",
    "cloud66/stack.redeploy.ok",
    "cloud66/stack.stackscore.changed",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::PROVIDERS;

    #[test]
    fn every_catalogued_event_type_has_its_schema_and_no_schema_is_left_over() {
        let mut expected: Vec<String> = ["envelope", "defs", "generic", "index"].map(str::to_owned).into();
        for provider in PROVIDERS {
            expected.extend(
                provider.catalogue().iter().map(|kind| format!("{}/{}", provider.name(), kind.event_type)),
            );
        }
        let mut found: Vec<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}
