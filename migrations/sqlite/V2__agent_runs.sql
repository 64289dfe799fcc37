-- Which run of an agent has claimed the name: its sessions at several edges serve it together, and a
-- claim of the same run raises no epoch. NULL: the agent does not say.
ALTER TABLE tunnels ADD COLUMN run_id BLOB;
