/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pandod: the daemon. Three processes can come out of this file, see config.h: the supervisor,
 * which people start; the broker below it; and with --no-supervisor the broker alone. Exit status:
 * 0 the end was wanted, 1 it could not serve, 2 wrong usage.
 */
#include <stdio.h>
#include <sys/prctl.h>

#include "config.h"
#include "log.h"
#include "server.h"
#include "supervisor.h"

static int usage_error(void)
{
	fprintf(stderr, "pandod: %s\n", pando_strerror_last());
	return 2;
}

int main(int argc, char **argv)
{
	static struct broker_config config;
	int rc = config_load(&config, argc, argv);
	bool supervise;

	if (rc > 0)
		return 0;
	if (rc < 0)
		return usage_error();
	supervise = config.role == CONFIG_ROLE_SUPERVISOR ||
		    (config.role == CONFIG_ROLE_DAEMON && !config.no_supervisor);
	if (log_open(config.log_target, config.log_level, supervise ? "supervisor" : "broker") < 0)
		return usage_error();
	if (config.role ==
	    CONFIG_ROLE_BROKER) /* started as /proc/self/exe, it would be called "exe" */
		(void)prctl(PR_SET_NAME, "pandod-broker");
	return supervise ? supervisor_run(&config) : server_run(&config);
}
