//! Installs the brokers that the tests talk to: once per version, on first need.
//!
//! They live in a cache outside the build output, `$HOOKBUS_TEST_CACHE`, else
//! `$XDG_CACHE_HOME/hookbus-tests`, else `$HOME/.cache/hookbus-tests`. A tool that is missing fails
//! the test: a broker test that did not run has shown nothing.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

pub(crate) const NATS_VERSION: &str = "2.15.2";
pub(crate) const KAFKA_VERSION: &str = "4.1.0";
pub(crate) const JAVA_HINT: &str = "install the Debian package openjdk-17-jre-headless";

const KAFKA_POM: &str = r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>hookbus.tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.1</version></dependency>
  </dependencies>
</project>
"#;

/// The program `nats-server`.
pub(crate) fn nats_server() -> PathBuf {
    let folder = provided(&format!("nats-server-{NATS_VERSION}"), |target| {
        let mut go = Command::new("go");
        go.arg("install").arg(format!("github.com/nats-io/nats-server/v2@v{NATS_VERSION}"));
        // Not in a module of somebody else's.
        go.env("GOBIN", target).current_dir(target);
        run(go, "install the Debian package golang (1.25 or newer, or one that fetches its own successor)");
    });
    folder.join("nats-server")
}

/// The class path of Kafka and its tools.
pub(crate) fn kafka_class_path() -> String {
    let folder = provided(&format!("kafka-{KAFKA_VERSION}"), |target| {
        fs::write(target.join("pom.xml"), KAFKA_POM.replace("KAFKA_VERSION", KAFKA_VERSION))
            .expect("a fresh folder");
        let mut mvn = Command::new("mvn");
        mvn.args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs"]).current_dir(target);
        run(mvn, "install the Debian package maven");
    });
    format!("{}/libs/*", folder.display())
}

/// The folder `name` in the cache, made by `install` if it is not there. What is there is whole:
/// it got its name when it was complete.
fn provided(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let cache = cache();
    let folder = cache.join(name);
    if folder.is_dir() {
        return folder;
    }
    fs::create_dir_all(&cache).unwrap_or_else(|error| panic!("cannot make {}: {error}", cache.display()));
    let lock = File::create(cache.join(format!("{name}.lock"))).expect("the cache can be written");
    lock.lock().expect("the cache's file system knows locks");
    if folder.is_dir() {
        return folder;
    }
    eprintln!("hookbus tests: installing {name} into {} (once; needs the network)", cache.display());
    let begun = Instant::now();
    let unfinished = tempfile::Builder::new()
        .prefix(&format!("{name}."))
        .tempdir_in(&cache)
        .expect("the cache can be written");
    install(unfinished.path());
    fs::rename(unfinished.keep(), &folder).expect("nobody else holds the lock");
    eprintln!("hookbus tests: installed {name} in {:.1} s", begun.elapsed().as_secs_f64());
    folder
}

fn cache() -> PathBuf {
    let under = |name: &str, rest: &str| {
        std::env::var_os(name).filter(|value| !value.is_empty()).map(|value| PathBuf::from(value).join(rest))
    };
    under("HOOKBUS_TEST_CACHE", "")
        .or_else(|| under("XDG_CACHE_HOME", "hookbus-tests"))
        .or_else(|| under("HOME", ".cache/hookbus-tests"))
        .expect("set HOOKBUS_TEST_CACHE: there is no HOME to keep the test brokers under")
}

/// Runs an installer to its end; without it, or when it fails, so does the test.
pub(crate) fn run(mut command: Command, hint: &str) {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("the tests need `{program}`, which is not installed: {hint}")
        }
        Err(error) => panic!("cannot run `{program}`: {error}; {hint}"),
    };
    assert!(
        output.status.success(),
        "`{command:?}` failed with {}; {hint}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}
