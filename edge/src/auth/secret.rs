//! The edges' one secret, from which all their keys come: the same file on every edge of a cluster.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
};

use aws_lc_rs::hkdf;

/// Least length, in bytes.
const MIN_LEN: usize = 32;
/// More than this is no secret but a wrong file.
const MAX_LEN: u64 = 64 * 1024;

/// The secret, spread: single keys are derived from it by purpose and name, and none of them tells
/// anything of it or of another one.
pub(crate) struct Secret(hkdf::Prk);

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("{0}: a secret has at least 32 bytes")]
    TooShort(String),
    #[error("{0}: this is too large to be a secret")]
    TooLong(String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// 32 bytes of key.
struct KeyLen;

impl hkdf::KeyType for KeyLen {
    fn len(&self) -> usize {
        32
    }
}

impl Secret {
    /// From bytes of enough randomness; `None`: there are too few.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"uniroute edge secret, version 1");
        (bytes.len() >= MIN_LEN).then(|| Self(salt.extract(bytes)))
    }

    /// One that nobody knows, for as long as this process lives.
    pub(crate) fn random() -> Self {
        Self::new(&random()).expect("32 bytes are enough")
    }

    /// Reads the file, all of it but white space around; or makes it (mode 0600) with a new secret,
    /// if it is not there. Two processes that start at once end up with the same one.
    pub(crate) fn load_or_create(path: &Path) -> Result<Self, SecretError> {
        let io = |source| SecretError::Io { path: path.display().to_string(), source };
        match Self::create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(error)),
        }
        Self::load(path)
    }

    /// Reads the file, all of it but white space around.
    pub(crate) fn load(path: &Path) -> Result<Self, SecretError> {
        let name = || path.display().to_string();
        let io = |source| SecretError::Io { path: name(), source };
        let mut bytes = Vec::new();
        let file = fs::File::open(path).map_err(io)?;
        file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_LEN {
            return Err(SecretError::TooLong(name()));
        }
        Self::new(bytes.trim_ascii()).ok_or_else(|| SecretError::TooShort(name()))
    }

    /// Writes a new secret beside the place and moves it there, unless there is one: no reader ever
    /// sees half of it.
    fn create(path: &Path) -> io::Result<()> {
        if path.exists() {
            return Ok(());
        }
        let beside = path.with_extension(format!("new-{}", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&beside)?;
        let hex: String = random().iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "{hex}")?;
        file.sync_all()?;
        // A link, not a move: it refuses where a file is already.
        let linked = fs::hard_link(&beside, path);
        fs::remove_file(&beside)?;
        linked
    }

    /// The key for one purpose, and of one name among those for it.
    pub(crate) fn derive(&self, purpose: &str, name: &str) -> [u8; 32] {
        // A length in front: no two pairs make the same info.
        let length = u32::try_from(purpose.len()).unwrap_or(u32::MAX).to_be_bytes();
        let info = [&length[..], purpose.as_bytes(), name.as_bytes()];
        let mut key = [0; 32];
        let okm = self.0.expand(&info, KeyLen).expect("32 bytes are far from the most");
        okm.fill(&mut key).expect("it has this length");
        key
    }
}

fn random() -> [u8; 32] {
    let mut random = [0; 32];
    getrandom::fill(&mut random).expect("the operating system has a source of randomness");
    random
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_secret_purpose_and_name() {
        let (one, other) = (Secret::new(&[1; 32]).unwrap(), Secret::new(&[2; 32]).unwrap());
        let key = one.derive("access", "k1");
        assert_eq!(key, Secret::new(&[1; 32]).unwrap().derive("access", "k1"));
        assert_ne!(key, other.derive("access", "k1"));
        assert_ne!(key, one.derive("access", "k2"));
        assert_ne!(key, one.derive("accessk", "1"), "where the purpose ends counts");
        assert!(Secret::new(&[1; 31]).is_none());
    }

    #[test]
    fn a_secret_never_prints() {
        assert_eq!(format!("{:?}", Secret::random()), "Secret(***)");
    }

    #[test]
    fn the_file_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let made = Secret::load_or_create(&path).unwrap().derive("a", "b");
        assert_eq!(made, Secret::load_or_create(&path).unwrap().derive("a", "b"));
        assert_eq!(made, Secret::load(&path).unwrap().derive("a", "b"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "too short\n").unwrap();
        let error = Secret::load_or_create(&path).unwrap_err().to_string();
        assert!(error.ends_with("secret: a secret has at least 32 bytes"), "{error}");
        fs::write(&path, vec![b'x'; 65 * 1024]).unwrap();
        assert!(matches!(Secret::load(&path), Err(SecretError::TooLong(_))));
        let nowhere = dir.path().join("no/such/folder");
        assert!(matches!(Secret::load_or_create(&nowhere), Err(SecretError::Io { .. })));
    }
}
