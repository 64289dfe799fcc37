//! `user`, `token` and `invite`: accounts on the store directly, without an edge. What is made to be
//! read by programs goes to standard output, alone; words about it to standard error.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use uniroute_edge::{
    config::{Durable, File},
    setup::{AccountLine, Role, Setup},
};
use uuid::Uuid;

/// Longest password file.
const MAX_FILE: u64 = 4_096;

/// Which store.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The config file of the edge.
    #[arg(long, env = "UNIROUTE_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// sqlite:PATH or postgres://…; a password goes into the environment or the config file.
    /// Config key `store`. Default: DATA_DIR/edge.db.
    #[arg(long, env = "UNIROUTE_STORE", value_name = "URL", hide_env_values = true, global = true)]
    store: Option<String>,
    /// Where the edge keeps its files. Config key `data_dir`.
    #[arg(long, env = "UNIROUTE_DATA_DIR", value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct User {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Makes an account. Without a password it gets a random one, which is printed.
    Add {
        /// The e-mail address that it logs in with.
        email: String,
        /// What it may do.
        #[arg(long, value_enum, default_value = "user")]
        role: Role,
        /// Its limits. Default: the plan `default`.
        #[arg(long)]
        plan: Option<String>,
        #[command(flatten)]
        password: Password,
    },
    /// Lists accounts.
    List,
    /// Changes an account.
    Set {
        /// Its e-mail address.
        email: String,
        /// What it may do.
        #[arg(long, value_enum)]
        role: Option<Role>,
        /// Its limits.
        #[arg(long)]
        plan: Option<String>,
        /// Whether it can do anything; its sessions end where not.
        #[arg(long, value_name = "true|false")]
        active: Option<bool>,
    },
    /// Sets a password, or a random one, which is printed. All its logins end.
    Password {
        /// Its e-mail address.
        email: String,
        #[command(flatten)]
        password: Password,
    },
    /// Removes an account with all that it has.
    Delete {
        /// Its e-mail address.
        email: String,
    },
}

/// Never the password itself: others on the machine see what programs are started with.
#[derive(Debug, Args)]
struct Password {
    /// A file with the password in its first line; `-` reads standard input.
    #[arg(long, env = "UNIROUTE_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Token {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Makes a token for agents and prints it, this once.
    Add {
        /// Whose it is.
        email: String,
        /// By which its owner knows it.
        #[arg(long, default_value = "")]
        name: String,
        /// Days until it is over. Default: it has no end.
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
        /// Names of tunnels that it is for, `*` for any characters; several times for several.
        /// Default: all of the account.
        #[arg(long = "allow", value_name = "NAME")]
        names: Vec<String>,
    },
    /// Lists tokens.
    List {
        /// Whose.
        email: String,
    },
    /// Revokes a token: its sessions end.
    Revoke {
        /// As listed.
        id: Uuid,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Invite {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: InviteCommand,
}

#[derive(Debug, Subcommand)]
enum InviteCommand {
    /// Makes an invitation and prints its secret, this once.
    Add {
        /// The only address that may use it. Default: any.
        #[arg(long)]
        email: Option<String>,
        /// What the account will be allowed.
        #[arg(long, value_enum, default_value = "user")]
        role: Role,
        /// Days until it is over.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=90))]
        days: u32,
    },
    /// Lists invitations that can be used.
    List,
    /// Takes an invitation back.
    Delete {
        /// As listed.
        id: Uuid,
    },
}

impl Place {
    /// What is said of the store, with the rest at its default.
    pub(crate) fn durable(self) -> anyhow::Result<Durable> {
        let mut file = self.config.as_deref().map(File::load).transpose()?.unwrap_or_default();
        file.store = self.store.or(file.store);
        file.data_dir = self.data_dir.or(file.data_dir);
        // Nothing is signed here: a secret that the edge needs may be missing.
        file.secret_file.get_or_insert_with(|| Path::new("secret").into());
        Ok(file.settings()?.durable)
    }

    async fn open(self) -> anyhow::Result<Setup> {
        let durable = self.durable()?;
        Ok(Setup::open(&durable.store, &durable.store_options).await?)
    }
}

impl Password {
    /// The first line; `None`: none is given.
    fn read(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let mut text = String::new();
        if path.as_os_str() == "-" {
            io::stdin().take(MAX_FILE).read_to_string(&mut text)?;
        } else {
            let file = fs::File::open(path).with_context(|| path.display().to_string())?;
            file.take(MAX_FILE).read_to_string(&mut text)?;
        }
        match text.lines().next() {
            Some(line) if !line.is_empty() => Ok(Some(line.to_owned())),
            _ => bail!("there is no password in {}", path.display()),
        }
    }
}

pub(super) fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn print(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn print_user(user: &AccountLine) -> anyhow::Result<()> {
    let state = if user.is_active { "active" } else { "inactive" };
    print(&format!("{}  {:8}  {:8}  {}  {}", user.id, user.role, state, user.plan, user.email))
}

impl User {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        block_on(async {
            let setup = self.place.open().await?;
            match self.command {
                UserCommand::Add { email, role, plan, password } => {
                    let password = password.read()?;
                    let (user, made) = setup.add_user(&email, password, role, plan).await?;
                    say(&format!("{} is an account now ({})", user.email, user.role));
                    made.map_or(Ok(()), |password| print(&password))
                }
                UserCommand::List => setup.users().await?.iter().try_for_each(print_user),
                UserCommand::Set { email, role, plan, active } => {
                    print_user(&setup.change_user(&email, role, plan, active).await?)
                }
                UserCommand::Password { email, password } => {
                    let made = setup.set_password(&email, password.read()?).await?;
                    say("the password is set, and all logins have ended");
                    made.map_or(Ok(()), |password| print(&password))
                }
                UserCommand::Delete { email } => {
                    setup.remove_user(&email).await?;
                    say("the account is gone");
                    Ok(())
                }
            }
        })
    }
}

impl Token {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        block_on(async {
            let setup = self.place.open().await?;
            match self.command {
                TokenCommand::Add { email, name, days, names } => {
                    print(&setup.add_token(&email, &name, days, names).await?)
                }
                TokenCommand::List { email } => {
                    for token in setup.tokens(&email).await? {
                        let state = if token.is_good { "good" } else { "over" };
                        let end = token.expires_at.map_or("-".to_owned(), |end| end.to_string());
                        let used = token.last_used_at.map_or("-".to_owned(), |at| at.to_string());
                        print(&format!(
                            "{}  {}…  {state}  until {end}  used {used}  {}",
                            token.id, token.hint, token.name
                        ))?;
                    }
                    Ok(())
                }
                TokenCommand::Revoke { id } => {
                    setup.revoke_token(id).await?;
                    say("the token is revoked");
                    Ok(())
                }
            }
        })
    }
}

impl Invite {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        block_on(async {
            let setup = self.place.open().await?;
            match self.command {
                InviteCommand::Add { email, role, days } => {
                    print(&setup.add_invite(email, role, days).await?)
                }
                InviteCommand::List => {
                    for invite in setup.invites().await? {
                        let email = invite.email.as_deref().unwrap_or("anybody");
                        let (id, end, role) = (invite.id, invite.expires_at, invite.role);
                        print(&format!("{id}  {role:8}  until {end}  for {email}"))?;
                    }
                    Ok(())
                }
                InviteCommand::Delete { id } => {
                    setup.remove_invite(id).await?;
                    say("the invitation is taken back");
                    Ok(())
                }
            }
        })
    }
}
