//! Configuration, parsed once: a TOML file, then environment variables.
//! Nothing else in the mesh reads the environment.

use figment::Figment;
use figment::providers::{Data, Env, Format as _, Toml};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A configuration cannot be read or says what it may not.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file.
    #[error("configuration file {0} does not exist")]
    Missing(PathBuf),
    /// A value is missing, unknown or of the wrong kind.
    #[error("configuration: {0}")]
    Invalid(Box<figment::Error>),
}

/// Reads `path`; a variable `<prefix>SECTION__KEY` overrides `section.key`.
///
/// # Errors
/// The file is missing, or a value does not fit `T`.
pub fn load<T: DeserializeOwned>(path: &Path, prefix: &str) -> Result<T, ConfigError> {
    if !path.is_file() {
        return Err(ConfigError::Missing(path.to_owned()));
    }
    extract(Toml::file_exact(path), prefix)
}

/// The same of a text.
///
/// # Errors
/// A value does not fit `T`.
pub fn parse<T: DeserializeOwned>(text: &str, prefix: &str) -> Result<T, ConfigError> {
    extract(Toml::string(text), prefix)
}

fn extract<T: DeserializeOwned>(file: Data<Toml>, prefix: &str) -> Result<T, ConfigError> {
    Figment::from(file)
        .merge(Env::prefixed(prefix).split("__"))
        .extract()
        .map_err(|e| ConfigError::Invalid(Box::new(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
    }

    #[test]
    fn reads_and_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        assert!(matches!(load::<Sample>(&path, "CHANCERY_TEST_A_"), Err(ConfigError::Missing(_))));
        std::fs::write(&path, "name = 'x'").unwrap();
        assert_eq!(load::<Sample>(&path, "CHANCERY_TEST_A_").unwrap().name, "x");
        std::fs::write(&path, "nmae = 'x'").unwrap();
        let error = load::<Sample>(&path, "CHANCERY_TEST_A_").unwrap_err().to_string();
        assert!(error.contains("nmae"), "{error}");
        assert_eq!(parse::<Sample>("name = 'x'", "CHANCERY_TEST_A_").unwrap().name, "x");
    }
}
