/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Answers records on standard input with what the patch queue's arithmetic
 * makes of them.
 */

#include <stdio.h>
#include <xen/tdf-math.h>

enum { TO_VIRT, TO_REAL, NEXT, SCALE, RATIO, VALID, REDUCE, PARSE, START, CHANGE,
       READ };

/* Numbers are op, real0, virt0, num, den and up to three operands. */
#define IN 8
#define OUT 4

int main(void)
{
    static struct tdf_segment running;
    int64_t in[IN], out[OUT];

    while ( fread(in, sizeof(in), 1, stdin) == 1 )
    {
        struct tdf_segment seg = {
            .real0 = in[1], .virt0 = in[2], .num = in[3], .den = in[4],
        };
        uint32_t num = in[5], den = in[6];

        out[0] = out[1] = out[2] = out[3] = 0;

        switch ( in[0] )
        {
        case TO_VIRT:
            out[0] = tdf_to_virt(&seg, in[5]);
            break;

        case TO_REAL:
            out[0] = tdf_to_real(&seg, in[5]);
            break;

        case NEXT:
            seg = tdf_segment_next(&seg, in[5], in[6], in[7]);
            out[0] = seg.real0;
            out[1] = seg.virt0;
            out[2] = seg.num;
            out[3] = seg.den;
            break;

        case SCALE:
        {
            uint32_t mul = in[5];
            int8_t shift = in[6];

            tdf_scale(&seg, &mul, &shift);
            out[0] = mul;
            out[1] = shift;
            break;
        }

        case RATIO:
            out[0] = tdf_ratio(&seg, in[5]);
            break;

        case VALID:
            out[0] = tdf_factor_valid(num, den);
            break;

        case REDUCE:
            tdf_factor_reduce(&num, &den);
            out[0] = num;
            out[1] = den;
            break;

        case PARSE:
            out[0] = tdf_factor_parse((const char *)(in + 1), &num, &den);
            out[1] = num;
            out[2] = den;
            break;

        case START:
            running = seg;
            break;

        case CHANGE:
            out[0] = tdf_to_virt(&running, in[5]);
            running = tdf_segment_next(&running, in[5], in[6], in[7]);
            out[1] = tdf_to_virt(&running, in[5]);
            out[2] = running.real0;
            out[3] = running.virt0;
            break;

        case READ:
            out[0] = tdf_to_virt(&running, in[5]);
            break;
        }

        fwrite(out, sizeof(out), 1, stdout);
        /* START begins a run of many, which does not wait for each answer. */
        if ( in[0] < START )
            fflush(stdout);
    }

    return 0;
}
